"""What the names and shapes of a state dict show of the network's settings, family by family."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
Depths = Mapping[tuple[int, ...], str]
_Reader = Callable[[Shapes], dict[str, Any]]

IRESNET_DEPTHS: Depths = {
    (2, 2, 2, 2): "iresnet18",
    (3, 4, 6, 3): "iresnet34",
    (3, 4, 14, 3): "iresnet50",
    (3, 13, 30, 3): "iresnet100",
    (6, 26, 60, 6): "iresnet200",
}
IR_DEPTHS: Depths = {(2, 2, 2, 2): "ir18", (3, 4, 6, 3): "ir34", (3, 4, 14, 3): "ir50", (3, 13, 30, 3): "ir101"}

MAX_SIZE = 2**31


def settings_of(shapes: Shapes) -> dict[str, Any] | None:
    """Name and settings of the network these tensors are of, defaults included; None where no family fits.

    Where a tensor that shows a setting is not there, the setting is 0.
    """
    for present, absent, read in _FAMILIES:
        if all(name in shapes for name in present) and not any(name in shapes for name in absent):
            return read(shapes)
    return None


def _iresnet(shapes: Shapes) -> dict[str, Any]:
    layers = [num_children(shapes, f"layer{index}") for index in range(1, 5)]
    return {
        **_depth(layers, IRESNET_DEPTHS, "iresnet"),
        "embedding_dim": _size(shapes, "fc.weight", 2),
        "width_multiplier": _size(shapes, "conv1.weight", 4) / 64,
        "input_size": _input_size(_side_of_linear(shapes, "fc.weight", "bn2.weight")),
    }


def _ir(shapes: Shapes) -> dict[str, Any]:
    width = _size(shapes, "input_layer.0.weight", 4)
    pattern = re.compile(r"body\.\d{1,4}\.res_layer\.4\.weight")
    channels = Counter(_size(shapes, name, 4) for name in shapes if pattern.fullmatch(name))
    return {
        **_depth([channels[width * factor] for factor in (1, 2, 4, 8)], IR_DEPTHS, "ir"),
        "embedding_dim": _size(shapes, "output_layer.3.weight", 2),
        "width_multiplier": width / 64,
        "input_size": _input_size(_side_of_linear(shapes, "output_layer.3.weight", "output_layer.0.weight")),
    }


def _mobilefacenet(shapes: Shapes) -> dict[str, Any]:
    is_one = "layers.1.layers.0.weight" in shapes
    first = 1 if is_one else num_children(shapes, "layers.1.layers")
    blocks = [first, *(num_children(shapes, f"layers.{index}.layers") for index in (3, 5, 7))]
    return {
        "name": "mobilefacenet",
        "embedding_dim": _size(shapes, "features.layers.2.weight", 2),
        "blocks": blocks,
        "scale": _size(shapes, "layers.0.layers.0.weight", 4) // 64,
        "input_size": _input_size(_kernel(shapes, "features.layers.0.layers.0.weight")),
    }


def _mobilefacenet_classic(shapes: Shapes) -> dict[str, Any]:
    return {
        "name": "mobilefacenet_classic",
        "embedding_dim": _size(shapes, "output_layer.linear.weight", 2),
        "width_multiplier": _size(shapes, "conv1.conv.weight", 4) / 64,
        "input_size": _input_size(_kernel(shapes, "output_layer.conv_6_dw.conv.weight")),
    }


def _mobilefacenet_facex(shapes: Shapes) -> dict[str, Any]:
    return {
        "name": "mobilefacenet_facex",
        "embedding_dim": _size(shapes, "linear.weight", 2),
        "width_multiplier": _size(shapes, "conv1.conv.weight", 4) / 64,
        "input_size": _input_size(_kernel(shapes, "conv_6_dw.conv.weight")),
    }


def _mobilefacenet_relu6(shapes: Shapes) -> dict[str, Any]:
    return {
        "name": "mobilefacenet_relu6",
        "embedding_dim": _size(shapes, "conv3.weight", 4),
        "width_multiplier": _size(shapes, "conv1.0.weight", 4) / 64,
        "input_size": _input_size(_kernel(shapes, "gdconv.depthwise.weight")),
    }


# Names that a family has, names that only its relatives have, and what reads the rest; the first that fits counts.
# The relatives of `ir` have squeeze-and-excitation or bottleneck blocks.
_FAMILIES: tuple[tuple[tuple[str, ...], tuple[str, ...], _Reader], ...] = (
    (
        ("input_layer.0.weight", "body.0.res_layer.5.weight"),
        ("body.0.res_layer.se_block.fc1.weight", "body.0.res_layer.7.weight"),
        _ir,
    ),
    (("layer1.0.bn1.weight", "features.running_mean"), (), _iresnet),
    (("layers.0.layers.0.weight", "conv_sep.layers.0.weight"), (), _mobilefacenet),
    (("conv2_dw.conv.weight", "conv_6_sep.conv.weight", "conv_6_dw.conv.weight"), (), _mobilefacenet_facex),
    (("conv2_dw.conv.weight", "conv_6_sep.conv.weight"), (), _mobilefacenet_classic),
    (("dw_conv.depthwise.weight", "gdconv.depthwise.weight"), (), _mobilefacenet_relu6),
)


def _depth(layers: list[int], names: Depths, free: str) -> dict[str, Any]:
    """The name of the network with these layers, or of the one whose layers are free, with them."""
    name = names.get(tuple(layers))
    return {"name": free, "layers": layers} if name is None else {"name": name}


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """A tensor's shape; zeros where it is not there, has another rank or sizes that no tensor has."""
    shape = shapes.get(name, ())
    is_possible = len(shape) == rank and all(0 < size <= MAX_SIZE for size in shape)
    return shape if is_possible else (0,) * rank


def _size(shapes: Shapes, name: str, rank: int) -> int:
    """The first size of a tensor, such as the channels that a convolution puts out."""
    return _shape(shapes, name, rank)[0]


def _kernel(shapes: Shapes, name: str) -> tuple[int, int]:
    """Height and width of a convolution's kernel."""
    _, _, height, width = _shape(shapes, name, 4)
    return height, width


def _side_of_linear(shapes: Shapes, linear: str, norm: str) -> tuple[int, int]:
    """Height and width of the square map of so many channels that a linear layer takes; 7 where it takes no square."""
    channels, features = _size(shapes, norm, 1), _shape(shapes, linear, 2)[1]
    if channels == 0:
        return 0, 0
    side = math.isqrt(features // channels)
    return (side, side) if side * side * channels == features else (7, 7)


def _input_size(map_size: tuple[int, int]) -> list[int]:
    """The pixels of an image whose last map has this size: 16 to a place."""
    return [16 * map_size[0], 16 * map_size[1]]


def num_children(shapes: Shapes, parent: str) -> int:
    """How many numbered children a module has."""
    children = (re.match(rf"{re.escape(parent)}\.(\d+)\.", name) for name in shapes)
    return len({child.group(1) for child in children if child})
