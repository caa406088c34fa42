"""Every backbone: tensors, counts, shapes, gradients, precision, and values against the layouts written out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.core.errors import ConfigError
from gkd.models import BACKBONES, Backbone, create_backbone, num_parameters
from gkd.models.iresnet import Projection

SMALL: dict[str, dict[str, Any]] = {
    "iresnet": {"layers": (1, 2, 1, 1), "width_multiplier": 0.125},
    "iresnet18": {"width_multiplier": 0.125},
    "iresnet34": {"width_multiplier": 0.125},
    "iresnet50": {"width_multiplier": 0.125},
    "iresnet100": {"width_multiplier": 0.0625},
    "iresnet200": {"width_multiplier": 0.0625},
    "ir": {"layers": (2, 1, 2, 1), "width_multiplier": 0.125},
    "ir18": {"width_multiplier": 0.125},
    "ir34": {"width_multiplier": 0.125},
    "ir50": {"width_multiplier": 0.125},
    "ir101": {"width_multiplier": 0.0625},
    "mobilefacenet": {"blocks": (1, 2, 1, 1), "scale": 1},
    "mobilefacenet_classic": {"width_multiplier": 0.25},
    "mobilefacenet_facex": {"width_multiplier": 0.25},
    "mobilefacenet_relu6": {"width_multiplier": 0.25},
}
# Tensors and parameters at 112 x 112 and 512 dimensions.
COUNTS = {
    "iresnet18": (187, 24_025_600),
    "iresnet34": (331, 34_139_328),
    "iresnet50": (475, 43_590_848),
    "iresnet100": (925, 65_156_160),
    "iresnet200": (1807, 118_833_920),
    "ir18": (179, 24_020_352),
    "ir34": (323, 34_134_080),
    "ir50": (467, 43_585_600),
    "ir101": (917, 65_150_912),
    "mobilefacenet": (333, 2_059_520),
    "mobilefacenet_classic": (331, 1_199_488),
    "mobilefacenet_facex": (333, 1_200_512),
    "mobilefacenet_relu6": (307, 1_197_696),
}
# One of each class.
KINDS = ["iresnet18", "ir18", "mobilefacenet", "mobilefacenet_classic", "mobilefacenet_facex", "mobilefacenet_relu6"]


def small(name: str, **changes: Any) -> Backbone:
    torch.manual_seed(0)
    return create_backbone(name, **{"embedding_dim": 16, "input_size": (56, 64), **SMALL[name], **changes})


def images(*, count: int = 2, size: tuple[int, int] = (56, 64), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def on_meta(name: str, **options: Any) -> Backbone:
    with torch.device("meta"):
        return create_backbone(name, **options)


def test_every_backbone_has_a_small_member_here() -> None:
    assert SMALL.keys() == BACKBONES.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_published_networks(name: str) -> None:
    backbone = on_meta(name)
    assert (len(backbone.state_dict()), num_parameters(backbone)) == COUNTS[name]


@pytest.mark.parametrize("name", BACKBONES)
def test_settings_are_keyword_only_plain_and_annotated(name: str) -> None:
    for parameter in inspect.signature(BACKBONES[name]).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(56, 56), (64, 64), (50, 70)])
def test_shapes_and_attributes(name: str, size: tuple[int, int]) -> None:
    backbone = on_meta(name, **{**SMALL[name], "input_size": size}, embedding_dim=24)
    assert (backbone.embedding_dim, backbone.input_size) == (24, size)
    assert backbone(torch.empty(2, 3, *size, device="meta")).shape == (2, 24)


@pytest.mark.parametrize("name", COUNTS)
def test_full_size_forward(name: str) -> None:
    assert on_meta(name)(torch.empty(2, 3, 112, 112, device="meta")).shape == (2, 512)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_reaches_every_trained_parameter(name: str) -> None:
    backbone = small(name)
    backbone(images(count=3)).sin().sum().backward()
    for key, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", BACKBONES)
def test_same_seed_same_weights(name: str) -> None:
    first, second = small(name).state_dict(), small(name).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", BACKBONES)
def test_embeddings_are_raw_and_images_are_left_alone(name: str) -> None:
    backbone, batch = small(name).eval(), images()
    before = batch.clone()
    embeddings = backbone(batch)
    assert torch.equal(batch, before)
    assert embeddings.norm(dim=1).sub(1).abs().min() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_permuting_the_batch_permutes_the_embeddings(name: str) -> None:
    backbone, batch = small(name).eval().double(), images(count=4, dtype=torch.float64)
    torch.testing.assert_close(backbone(batch.flip(0)), backbone(batch).flip(0))


@pytest.mark.parametrize("name", KINDS)
def test_channels_last_changes_nothing(name: str) -> None:
    backbone, batch = small(name).eval().double(), images(dtype=torch.float64)
    expected = backbone(batch)
    fast = backbone.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(batch.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", KINDS)
def test_last_layers_run_in_full_precision_under_autocast(name: str) -> None:
    backbone = small(name)
    seen: dict[str, tuple[torch.dtype, torch.dtype]] = {}

    def note(key: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        return lambda _module, inputs, output: seen.update({key: (inputs[0].dtype, output.dtype)})

    for key, module in backbone.named_modules():
        if isinstance(module, nn.Linear | nn.BatchNorm1d | nn.Conv2d):
            module.register_forward_hook(note(key))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = backbone(images())
    last_two = list(seen.values())[-2:]
    assert embeddings.dtype == torch.float32
    assert last_two == [(torch.float32, torch.float32)] * 2
    assert torch.bfloat16 in {output for _, output in seen.values()}


def test_iresnet_freezes_the_scale_of_its_last_norm_only() -> None:
    frozen = [key for key, parameter in small("iresnet18").named_parameters() if not parameter.requires_grad]
    assert frozen == ["features.weight"]


def test_iresnet_initial_weights() -> None:
    backbone = create_backbone("iresnet18", width_multiplier=0.5, input_size=(32, 32), embedding_dim=8)
    weight = backbone.get_parameter("layer4.1.conv2.weight")
    assert weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert weight.mean().item() == pytest.approx(0.0, abs=0.002)
    assert backbone.get_parameter("layer4.1.prelu.weight").unique().tolist() == [0.25]


@pytest.mark.parametrize(
    ("name", "key", "fan_out"),
    [
        ("mobilefacenet", "conv_sep.layers.0.weight", 512),
        ("mobilefacenet", "features.layers.2.weight", 512),
        ("mobilefacenet_classic", "conv_6_sep.conv.weight", 512),
        ("mobilefacenet_classic", "output_layer.linear.weight", 512),
        ("mobilefacenet_facex", "linear.weight", 512),
        ("mobilefacenet_relu6", "conv3.weight", 512),
    ],
)
def test_mobilefacenet_initial_weights(name: str, key: str, fan_out: int) -> None:
    weight = create_backbone(name).get_parameter(key)
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["iresnet18", "ir18"])
def test_dropout_acts_in_training_only(name: str) -> None:
    backbone = small(name, dropout=0.5).double()
    batch = images(dtype=torch.float64)
    assert not torch.equal(backbone(batch), backbone(batch))
    backbone.eval()
    assert torch.equal(backbone(batch), backbone(batch))


IRESNET100_SHAPES = {
    "conv1.weight": (64, 3, 3, 3),
    "bn1.num_batches_tracked": (),
    "prelu.weight": (64,),
    "layer1.0.bn1.weight": (64,),
    "layer1.0.downsample.0.weight": (64, 64, 1, 1),
    "layer1.2.bn3.running_var": (64,),
    "layer2.0.conv1.weight": (128, 64, 3, 3),
    "layer2.12.prelu.weight": (128,),
    "layer3.29.conv2.weight": (256, 256, 3, 3),
    "layer4.0.downsample.1.running_mean": (512,),
    "layer4.2.bn3.bias": (512,),
    "bn2.weight": (512,),
    "fc.weight": (512, 25088),
    "fc.bias": (512,),
    "features.weight": (512,),
    "features.num_batches_tracked": (),
}
MOBILEFACENET_SHAPES = {
    "layers.0.layers.0.weight": (128, 3, 3, 3),
    "layers.0.layers.2.weight": (128,),
    "layers.1.layers.0.weight": (128, 2, 3, 3),
    "layers.2.layers.0.layers.0.weight": (128, 128, 1, 1),
    "layers.2.layers.1.layers.0.weight": (128, 1, 3, 3),
    "layers.2.layers.2.layers.0.weight": (128, 128, 1, 1),
    "layers.2.layers.2.layers.1.running_var": (128,),
    "layers.3.layers.3.layers.1.layers.2.weight": (128,),
    "layers.4.layers.1.layers.0.weight": (256, 1, 3, 3),
    "layers.5.layers.5.layers.2.layers.0.weight": (256, 256, 1, 1),
    "layers.6.layers.1.layers.0.weight": (512, 1, 3, 3),
    "layers.7.layers.1.layers.0.layers.0.weight": (256, 256, 1, 1),
    "conv_sep.layers.0.weight": (512, 256, 1, 1),
    "features.layers.0.layers.0.weight": (512, 1, 7, 7),
    "features.layers.0.layers.1.running_mean": (512,),
    "features.layers.2.weight": (512, 512),
    "features.layers.3.weight": (512,),
}
CLASSIC_SHAPES = {
    "conv1.conv.weight": (64, 3, 3, 3),
    "conv2_dw.conv.weight": (64, 1, 3, 3),
    "conv2_dw.prelu.weight": (64,),
    "conv_23.conv.conv.weight": (128, 64, 1, 1),
    "conv_23.project.bn.running_var": (64,),
    "conv_3.model.3.conv_dw.conv.weight": (128, 1, 3, 3),
    "conv_34.project.conv.weight": (128, 256, 1, 1),
    "conv_4.model.5.project.conv.weight": (128, 256, 1, 1),
    "conv_45.conv_dw.prelu.weight": (512,),
    "conv_5.model.1.conv.bn.weight": (256,),
    "conv_6_sep.conv.weight": (512, 128, 1, 1),
    "output_layer.conv_6_dw.conv.weight": (512, 1, 7, 7),
    "output_layer.conv_6_dw.bn.bias": (512,),
    "output_layer.linear.weight": (512, 512),
    "output_layer.bn.running_mean": (512,),
}
FACEX_SHAPES = {
    **{key: shape for key, shape in CLASSIC_SHAPES.items() if not key.startswith("output_layer.")},
    "conv_6_dw.conv.weight": (512, 1, 7, 7),
    "conv_6_dw.bn.bias": (512,),
    "linear.weight": (512, 512),
    "bn.weight": (512,),
    "bn.bias": (512,),
    "bn.running_mean": (512,),
}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("iresnet100", IRESNET100_SHAPES),
        ("mobilefacenet", MOBILEFACENET_SHAPES),
        ("mobilefacenet_classic", CLASSIC_SHAPES),
        ("mobilefacenet_facex", FACEX_SHAPES),
    ],
)
def test_names_and_shapes_of_tensors(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    state = on_meta(name).state_dict()
    assert {key: tuple(state[key].shape) for key in shapes if key in state} == shapes


def test_classic_ends_without_scale_and_linear_parts_without_prelu() -> None:
    keys = on_meta("mobilefacenet_classic").state_dict().keys()
    assert "output_layer.bn.weight" not in keys
    assert "conv_23.project.prelu.weight" not in keys
    assert "output_layer.linear.bias" not in keys


def test_facex_is_classic_with_its_output_at_the_top_and_an_affine_end() -> None:
    classic, facex = (on_meta(f"mobilefacenet_{name}").state_dict() for name in ("classic", "facex"))
    expected = {key.removeprefix("output_layer."): tensor.shape for key, tensor in classic.items()}
    expected |= {"bn.weight": torch.Size([512]), "bn.bias": torch.Size([512])}
    assert {key: tensor.shape for key, tensor in facex.items()} == expected


def test_mobilefacenet_with_more_first_blocks_has_a_stage_there() -> None:
    backbone = on_meta("mobilefacenet", blocks=(2, 8, 12, 4), scale=4)
    assert backbone.state_dict()["layers.1.layers.1.layers.1.layers.0.weight"].shape == (128, 1, 3, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iresnet", {"layers": (1, 2, 3)}, r"layers must be a list of 4 integers, got \(1, 2, 3\)"),
        ("iresnet", {"layers": "1234"}, "layers must be a list of 4 integers"),
        ("iresnet", {"layers": (1, 0, 1, 1)}, r"layers\[1\] must be an integer from 1 to 200, got 0"),
        ("iresnet18", {"width_multiplier": 0.01}, "width_multiplier must be a number from 0.0625 to 8, got 0.01"),
        ("iresnet18", {"width_multiplier": float("nan")}, "width_multiplier .* got nan"),
        ("iresnet18", {"dropout": 1.5}, "dropout must be a number from 0 to 1, got 1.5"),
        ("iresnet18", {"embedding_dim": 0}, "embedding_dim must be an integer from 1 to 65536, got 0"),
        ("mobilefacenet", {"input_size": (112,)}, "input_size must be a list of 2 integers"),
        ("mobilefacenet", {"input_size": (8, 112)}, r"input_size\[0\] must be an integer from 16 to 1024, got 8"),
        ("mobilefacenet", {"scale": 1.5}, "scale must be an integer from 1 to 16, got 1.5"),
        ("mobilefacenet", {"scale": True}, "scale must be an integer"),
        ("mobilefacenet", {"blocks": (1, 4, 6, 1000)}, r"blocks\[3\] must be an integer from 1 to 100"),
        ("mobilefacenet_classic", {"width_multiplier": "1"}, "width_multiplier must be a number"),
        ("mobilefacenet_facex", {"width_multiplier": 9}, "width_multiplier must be a number from 0.0625 to 8, got 9"),
        ("mobilefacenet_relu6", {"width_multiplier": 0}, "width_multiplier must be a number from 0.0625 to 8, got 0"),
        ("ir", {"layers": (1, 1, 1, 201)}, r"layers\[3\] must be an integer from 1 to 200, got 201"),
        ("ir18", {"dropout": -0.1}, "dropout must be a number from 0 to 1, got -0.1"),
    ],
)
def test_settings_out_of_range(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backbone(name, **options)


def with_random_statistics(backbone: Backbone) -> Backbone:
    """Running statistics and affine parts that a wrong wiring would show in the values."""
    generator = torch.Generator().manual_seed(2)
    for tensor in backbone.state_dict().values():
        if tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return backbone.double().eval()


class Layout:
    """The operations of a network in evaluation mode, from its state dict and the names of its tensors alone."""

    def __init__(self, backbone: Backbone) -> None:
        self.state = backbone.state_dict()

    def norm(self, name: str, inputs: Tensor) -> Tensor:
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        shape = (1, -1) + (1,) * (inputs.dim() - 2)
        weight = self.state.get(f"{name}.weight", torch.ones_like(mean))
        bias = self.state.get(f"{name}.bias", torch.zeros_like(mean))
        scale = weight / (variance + 1e-5).sqrt()
        return (inputs - mean.view(shape)) * scale.view(shape) + bias.view(shape)

    def conv(self, name: str, inputs: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        groups = inputs.shape[1] // weight.shape[1]
        return F.conv2d(inputs, weight, stride=stride, padding=padding, groups=groups)

    def prelu(self, name: str, inputs: Tensor) -> Tensor:
        slope = self.state[f"{name}.weight"].view(1, -1, 1, 1)
        return torch.where(inputs >= 0, inputs, slope * inputs)

    def block(self, names: tuple[str, str, str | None], inputs: Tensor, stride: int = 1) -> Tensor:
        outputs = self.norm(names[1], self.conv(names[0], inputs, stride))
        return outputs if names[2] is None else self.prelu(names[2], outputs)


def iresnet_written_out(backbone: Backbone, batch: Tensor, layers: tuple[int, ...]) -> Tensor:
    net = Layout(backbone)
    x = net.prelu("prelu", net.norm("bn1", net.conv("conv1", batch)))
    for layer, num_blocks in enumerate(layers, start=1):
        for block in range(num_blocks):
            at, stride = f"layer{layer}.{block}", 2 if block == 0 else 1
            y = net.prelu(f"{at}.prelu", net.norm(f"{at}.bn2", net.conv(f"{at}.conv1", net.norm(f"{at}.bn1", x))))
            y = net.norm(f"{at}.bn3", net.conv(f"{at}.conv2", y, stride))
            if block == 0:
                x = net.norm(f"{at}.downsample.1", net.conv(f"{at}.downsample.0", x, stride, padding=0))
            x = x + y
    x = net.norm("bn2", x).flatten(1) @ net.state["fc.weight"].T + net.state["fc.bias"]
    return net.norm("features", x)


def mobilefacenet_written_out(backbone: Backbone, batch: Tensor, blocks: tuple[int, ...]) -> Tensor:
    net = Layout(backbone)

    def part(at: str, x: Tensor, stride: int = 1) -> Tensor:
        return net.block((f"{at}.layers.0", f"{at}.layers.1", f"{at}.layers.2"), x, stride)

    def inverted(at: str, x: Tensor, stride: int) -> Tensor:
        y = part(f"{at}.layers.1", part(f"{at}.layers.0", x), stride)
        y = net.block((f"{at}.layers.2.layers.0", f"{at}.layers.2.layers.1", None), y)
        return x + y if stride == 1 else y

    x = part("layers.1", part("layers.0", batch, stride=2))
    for stage, num_blocks in zip((2, 4, 6), blocks[1:], strict=True):
        x = inverted(f"layers.{stage}", x, stride=2)
        for block in range(num_blocks):
            x = inverted(f"layers.{stage + 1}.layers.{block}", x, stride=1)
    x = net.conv("features.layers.0.layers.0", part("conv_sep", x), padding=0)
    x = net.norm("features.layers.0.layers.1", x).flatten(1) @ net.state["features.layers.2.weight"].T
    return net.norm("features.layers.3", x)


def classic_written_out(backbone: Backbone, batch: Tensor, output: str = "output_layer.") -> Tensor:
    net = Layout(backbone)

    def part(at: str, x: Tensor, stride: int = 1) -> Tensor:
        return net.block((f"{at}.conv", f"{at}.bn", f"{at}.prelu"), x, stride)

    def inverted(at: str, x: Tensor, stride: int) -> Tensor:
        y = part(f"{at}.conv_dw", part(f"{at}.conv", x), stride)
        y = net.block((f"{at}.project.conv", f"{at}.project.bn", None), y)
        return x + y if stride == 1 else y

    x = part("conv2_dw", part("conv1", batch, stride=2))
    for down, stage, num_blocks in (("conv_23", "conv_3", 4), ("conv_34", "conv_4", 6), ("conv_45", "conv_5", 2)):
        x = inverted(down, x, stride=2)
        for block in range(num_blocks):
            x = inverted(f"{stage}.model.{block}", x, stride=1)
    x = net.conv(f"{output}conv_6_dw.conv", part("conv_6_sep", x), padding=0)
    x = net.norm(f"{output}conv_6_dw.bn", x).flatten(1) @ net.state[f"{output}linear.weight"].T
    return net.norm(f"{output}bn", x)


def test_iresnet_equals_its_layout_written_out() -> None:
    backbone, batch = with_random_statistics(small("iresnet")), images(dtype=torch.float64)
    torch.testing.assert_close(backbone(batch), iresnet_written_out(backbone, batch, (1, 2, 1, 1)))


def test_mobilefacenet_equals_its_layout_written_out() -> None:
    backbone, batch = with_random_statistics(small("mobilefacenet")), images(dtype=torch.float64)
    torch.testing.assert_close(backbone(batch), mobilefacenet_written_out(backbone, batch, (1, 2, 1, 1)))


def test_mobilefacenet_classic_equals_its_layout_written_out() -> None:
    backbone, batch = with_random_statistics(small("mobilefacenet_classic")), images(dtype=torch.float64)
    torch.testing.assert_close(backbone(batch), classic_written_out(backbone, batch))


def test_mobilefacenet_facex_equals_its_layout_written_out() -> None:
    backbone, batch = with_random_statistics(small("mobilefacenet_facex")), images(dtype=torch.float64)
    torch.testing.assert_close(backbone(batch), classic_written_out(backbone, batch, output=""))


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_a_projection_equals_a_strided_convolution(channels: int) -> None:
    """Value and gradient, in float64 and in the order where torch's kernel fails for few channels."""
    torch.manual_seed(0)
    images = torch.randn(3, channels, 9, 7, dtype=torch.float64)
    projection = Projection(channels, 8, 1, stride=2, bias=False).double()
    results = []
    for compute in (projection, lambda maps: F.conv2d(maps, projection.weight, stride=2)):
        leaf = images.clone().requires_grad_()
        output = compute(leaf)
        gradients = torch.autograd.grad(output.square().sum(), (leaf, projection.weight))
        results.append((output, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pooling_the_input_is_the_network_for_smaller_images() -> None:
    pooled = small("mobilefacenet_classic", input_pooling=2).eval()
    smaller = small("mobilefacenet_classic", input_size=(28, 32)).eval()
    smaller.load_state_dict(pooled.state_dict())
    assert pooled.architecture["input_pooling"] == 2
    assert torch.equal(pooled(images()), smaller(F.avg_pool2d(images(), 2)))
    assert not torch.equal(pooled(images()), smaller(images()[..., ::2, ::2]))
    with pytest.raises(ConfigError, match="input_pooling must be an integer from 1 to 4, got 0"):
        small("mobilefacenet_classic", input_pooling=0)
