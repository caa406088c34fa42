"""Which family of network a state dict comes from, told by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

PREFIXES = ("features.module.", "module.features.", "module.", "model.", "net.", "backbone.")

DEPTHS = {
    (2, 2, 2, 2): "iresnet18",
    (3, 4, 6, 3): "iresnet34",
    (3, 4, 14, 3): "iresnet50",
    (3, 13, 30, 3): "iresnet100",
    (6, 26, 60, 6): "iresnet200",
}


def known_prefix(names: Iterable[str]) -> str:
    """The known prefix that all `names` bear, or an empty string."""
    listed = list(names)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in listed):
            return prefix
    return ""


def describe_family(shapes: Shapes) -> str:
    """A network's family and size in words, for messages: `iresnet50 (475 tensors)`."""
    return f"{_family(shapes)} ({len(shapes)} tensors)"


def _family(shapes: Shapes) -> str:
    if "input_layer.0.weight" in shapes and any(name.startswith("body.") for name in shapes):
        return f"an IR network of the `input_layer.`/`body.` family with {_num_children(shapes, 'body')} blocks"
    if "layer1.0.bn1.weight" in shapes and "features.running_mean" in shapes:
        return _iresnet(shapes)
    if "layers.0.layers.0.weight" in shapes and "conv_sep.layers.0.weight" in shapes:
        return _with_width("mobilefacenet", shapes["layers.0.layers.0.weight"], 128)
    if "conv2_dw.conv.weight" in shapes and "conv_6_sep.conv.weight" in shapes:
        return _with_width("mobilefacenet_classic", shapes["conv2_dw.conv.weight"], 64)
    return "a network of no known family"


def _iresnet(shapes: Shapes) -> str:
    layers = tuple(_num_children(shapes, f"layer{index}") for index in range(1, 5))
    name = DEPTHS.get((layers[0], layers[1], layers[2], layers[3]))
    return _with_width(name or f"iresnet with layers {list(layers)}", shapes.get("conv1.weight", ()), 64)


def _with_width(name: str, first_weight: tuple[int, ...], usual: int) -> str:
    width = first_weight[0] if first_weight else usual
    return name if width == usual else f"{name} of width {width}"


def _num_children(shapes: Shapes, parent: str) -> int:
    children = (re.match(rf"{parent}\.(\d+)\.", name) for name in shapes)
    return len({child.group(1) for child in children if child})


def describe_difference(expected: Shapes, given: Shapes) -> str:
    """What a strict load would refuse: missing and unexpected names by group, then shapes; empty where nothing."""
    wrong = [name for name in expected if name in given and expected[name] != given[name]]
    parts = [
        _grouped("missing", [name for name in expected if name not in given]),
        _grouped("unexpected", [name for name in given if name not in expected]),
        *(f"{name} has shape {list(given[name])}, expected {list(expected[name])}" for name in wrong[:5]),
        f"and {len(wrong) - 5} more of another shape" if len(wrong) > 5 else "",
    ]
    return "; ".join(part for part in parts if part)


def _grouped(what: str, names: list[str]) -> str:
    """`missing 20 tensors: layer3.* 18, fc.* 2`; at most eight groups are named."""
    if not names:
        return ""
    groups = Counter(name.partition(".")[0][:80] for name in names)
    listed = ", ".join(f"{group}.* {count}" for group, count in groups.most_common(8))
    more = f" and {len(groups) - 8} more groups" if len(groups) > 8 else ""
    return f"{what} {len(names)} tensors: {listed}{more}"
