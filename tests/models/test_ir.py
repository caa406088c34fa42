"""The 917-key family: tensors, counts by formula, the shortcut without weights, values and gradients written out."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.models import Backbone, create_backbone, num_parameters
from gkd.models.ir import Subsampling
from tests.models.test_backbones import Layout, images, on_meta, small, with_random_statistics

DEPTHS = {"ir18": (2, 2, 2, 2), "ir34": (3, 4, 6, 3), "ir50": (3, 4, 14, 3), "ir101": (3, 13, 30, 3)}
NORM_AFFINE = {"weight", "bias"}
NORM_ALL = NORM_AFFINE | {"running_mean", "running_var", "num_batches_tracked"}


def channels_of(layers: tuple[int, ...], width: int = 64) -> list[tuple[int, int, int]]:
    """In and out channels and stride of all blocks, from the table of the paper."""
    blocks, channels = [], width
    for factor, num_blocks in zip((1, 2, 4, 8), layers, strict=True):
        for index in range(num_blocks):
            blocks.append((channels, factor * width, 2 if index == 0 else 1))
            channels = factor * width
    return blocks


def names_by_hand(layers: tuple[int, ...]) -> set[str]:
    names = {"input_layer.0.weight", "input_layer.2.weight", "output_layer.3.weight", "output_layer.3.bias"}
    norms = {"input_layer.1", "output_layer.0"}
    for index, (in_channels, out_channels, _) in enumerate(channels_of(layers)):
        block = f"body.{index}"
        names |= {f"{block}.res_layer.{part}.weight" for part in (1, 3, 4)}
        norms |= {f"{block}.res_layer.{part}" for part in (0, 2, 5)}
        if in_channels != out_channels:
            names.add(f"{block}.shortcut_layer.0.weight")
            norms.add(f"{block}.shortcut_layer.1")
    names |= {f"{norm}.{part}" for norm in norms for part in NORM_ALL}
    return names | {f"output_layer.4.{part}" for part in NORM_ALL - NORM_AFFINE}


def parameters_by_hand(layers: tuple[int, ...], embedding_dim: int, side: int) -> int:
    total = 64 * 3 * 9 + 2 * 64 + 64
    for in_channels, out_channels, _ in channels_of(layers):
        total += 2 * in_channels + 9 * in_channels * out_channels + 2 * out_channels + out_channels
        total += 9 * out_channels * out_channels + 2 * out_channels
        if in_channels != out_channels:
            total += in_channels * out_channels + 2 * out_channels
    return total + 2 * 512 + (512 * side * side + 1) * embedding_dim


@pytest.mark.parametrize("name", DEPTHS)
def test_names_of_all_tensors(name: str) -> None:
    assert on_meta(name).state_dict().keys() == names_by_hand(DEPTHS[name])


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize(("embedding_dim", "side"), [(512, 7), (128, 4)])
def test_parameters_by_formula(name: str, embedding_dim: int, side: int) -> None:
    backbone = on_meta(name, embedding_dim=embedding_dim, input_size=(16 * side, 16 * side))
    assert num_parameters(backbone) == parameters_by_hand(DEPTHS[name], embedding_dim, side)


def test_the_published_network_has_917_tensors() -> None:
    assert len(names_by_hand(DEPTHS["ir101"])) == 917


SHAPES = {
    "input_layer.0.weight": (64, 3, 3, 3),
    "input_layer.2.weight": (64,),
    "body.0.res_layer.1.weight": (64, 64, 3, 3),
    "body.3.res_layer.0.running_mean": (64,),
    "body.3.res_layer.1.weight": (128, 64, 3, 3),
    "body.3.shortcut_layer.0.weight": (128, 64, 1, 1),
    "body.15.res_layer.3.weight": (128,),
    "body.16.shortcut_layer.1.running_var": (256,),
    "body.46.shortcut_layer.0.weight": (512, 256, 1, 1),
    "body.48.res_layer.5.bias": (512,),
    "output_layer.0.weight": (512,),
    "output_layer.3.weight": (512, 25088),
    "output_layer.3.bias": (512,),
    "output_layer.4.running_mean": (512,),
}


def test_shapes_of_ir101() -> None:
    state = on_meta("ir101").state_dict()
    assert {key: tuple(state[key].shape) for key in SHAPES} == SHAPES


@pytest.mark.parametrize("name", DEPTHS)
def test_a_depth_is_a_free_ir_with_those_layers(name: str) -> None:
    options: dict[str, Any] = {"width_multiplier": 0.0625, "input_size": (32, 48), "embedding_dim": 8}
    free = on_meta("ir", layers=DEPTHS[name], **options).state_dict()
    named = on_meta(name, **options).state_dict()
    assert {key: tensor.shape for key, tensor in named.items()} == {key: tensor.shape for key, tensor in free.items()}


@pytest.mark.parametrize(("stride", "size"), list(product([1, 2, 3], [(8, 8), (7, 5), (1, 4)])))
def test_the_shortcut_without_weights_is_a_maximum_over_single_pixels(stride: int, size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for compute in (Subsampling(stride), lambda inputs: F.max_pool2d(inputs, 1, stride)):
        leaf = maps.clone().requires_grad_()
        output = compute(leaf)
        results.append((output, *torch.autograd.grad(output.square().sum(), leaf)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_initial_weights() -> None:
    backbone = create_backbone("ir18", width_multiplier=0.5, input_size=(32, 32), embedding_dim=64)
    for key, fan_out in {"body.7.res_layer.4.weight": 256 * 9, "output_layer.3.weight": 64}.items():
        weight = backbone.get_parameter(key)
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    assert backbone.get_parameter("output_layer.3.bias").abs().sum() == 0
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def written_out(backbone: Backbone, batch: Tensor, blocks: list[tuple[int, int, int]]) -> Tensor:
    net = Layout(backbone)
    x = net.prelu("input_layer.2", net.norm("input_layer.1", net.conv("input_layer.0", batch)))
    for index, (in_channels, out_channels, stride) in enumerate(blocks):
        at = f"body.{index}"
        y = net.conv(f"{at}.res_layer.1", net.norm(f"{at}.res_layer.0", x))
        y = net.prelu(f"{at}.res_layer.3", net.norm(f"{at}.res_layer.2", y))
        y = net.norm(f"{at}.res_layer.5", net.conv(f"{at}.res_layer.4", y, stride))
        if in_channels == out_channels:
            x = F.max_pool2d(x, 1, stride) + y
        else:
            x = net.norm(f"{at}.shortcut_layer.1", net.conv(f"{at}.shortcut_layer.0", x, stride, padding=0)) + y
    x = (
        net.norm("output_layer.0", x).flatten(1) @ net.state["output_layer.3.weight"].T
        + net.state["output_layer.3.bias"]
    )
    return net.norm("output_layer.4", x)


@pytest.mark.parametrize("size", [(56, 64), (50, 38)])
def test_values_and_gradients_equal_the_layout_written_out(size: tuple[int, int]) -> None:
    backbone = with_random_statistics(small("ir", input_size=size))
    results = []
    for is_ours in (True, False):
        batch = images(size=size, dtype=torch.float64).requires_grad_()
        output = backbone(batch) if is_ours else written_out(backbone, batch, channels_of((2, 1, 2, 1), width=8))
        results.append((output, *torch.autograd.grad(output.sin().sum(), batch)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
