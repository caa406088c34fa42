"""MobileFaceNet with ReLU6: tensors, values and gradients written out, and the public network against its ONNX twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.data import PairSet
from gkd.data.transforms import decode_image
from gkd.models import Backbone, InputSpec, create_backbone, load_weights, num_parameters
from tests.models.test_backbones import Layout, images, on_meta, small, with_random_statistics

IMAGENET = InputSpec(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
HALVINGS = {0, 5, 12}

SHAPES = {
    "conv1.0.weight": (64, 3, 3, 3),
    "dw_conv.depthwise.weight": (64, 1, 3, 3),
    "dw_conv.pointwise.weight": (64, 64, 1, 1),
    "dw_conv.bn2.running_var": (64,),
    "features.0.conv.0.0.weight": (128, 64, 1, 1),
    "features.4.conv.1.0.weight": (128, 1, 3, 3),
    "features.5.conv.0.0.weight": (256, 64, 1, 1),
    "features.5.conv.2.weight": (128, 256, 1, 1),
    "features.6.conv.0.1.bias": (256,),
    "features.11.conv.3.running_mean": (128,),
    "features.12.conv.1.0.weight": (512, 1, 3, 3),
    "features.14.conv.2.weight": (128, 256, 1, 1),
    "conv2.0.weight": (512, 128, 1, 1),
    "gdconv.depthwise.weight": (512, 1, 7, 7),
    "gdconv.bn.weight": (512,),
    "conv3.weight": (128, 512, 1, 1),
    "conv3.bias": (128,),
    "bn.weight": (128,),
    "bn.num_batches_tracked": (),
}


def test_names_and_shapes_of_the_public_network() -> None:
    backbone = on_meta("mobilefacenet_relu6", embedding_dim=128)
    state = backbone.state_dict()
    assert (len(state), num_parameters(backbone)) == (307, 999_936)
    assert {key: tuple(state[key].shape) for key in SHAPES} == SHAPES
    assert {key.split(".")[1] for key in state if key.startswith("features.")} == set(map(str, range(15)))


def test_only_the_last_convolution_has_a_bias() -> None:
    state = on_meta("mobilefacenet_relu6").state_dict()
    biases = {key for key in state if key.endswith(".bias")} - {
        key.replace("running_mean", "bias") for key in state if key.endswith(".running_mean")
    }
    assert biases == {"conv3.bias"}


def test_the_bias_starts_at_zero() -> None:
    assert small("mobilefacenet_relu6").get_parameter("conv3.bias").abs().sum() == 0


def written_out(backbone: Backbone, batch: Tensor) -> Tensor:
    net = Layout(backbone)

    def capped(at: str, x: Tensor, stride: int = 1) -> Tensor:
        return net.norm(f"{at}.1", net.conv(f"{at}.0", x, stride)).clamp(0, 6)

    x = capped("conv1", batch, stride=2)
    x = net.norm("dw_conv.bn1", net.conv("dw_conv.depthwise", x)).clamp(min=0)
    x = net.norm("dw_conv.bn2", net.conv("dw_conv.pointwise", x)).clamp(min=0)
    for index in range(15):
        at, stride = f"features.{index}.conv", 2 if index in HALVINGS else 1
        y = capped(f"{at}.1", capped(f"{at}.0", x), stride)
        y = net.norm(f"{at}.3", net.conv(f"{at}.2", y))
        x = y if index in HALVINGS else x + y
    x = net.norm("gdconv.bn", net.conv("gdconv.depthwise", capped("conv2", x), padding=0)).flatten(1)
    x = x @ net.state["conv3.weight"].flatten(1).T + net.state["conv3.bias"]
    return net.norm("bn", x)


def test_values_and_gradients_equal_the_layout_written_out() -> None:
    backbone = with_random_statistics(small("mobilefacenet_relu6"))
    results = []
    for compute in (backbone, lambda batch: written_out(backbone, batch)):
        batch = (4 * images(dtype=torch.float64)).requires_grad_()
        output = compute(batch)
        results.append((output, *torch.autograd.grad(output.sin().sum(), batch)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_large_activations_are_capped_at_six_where_the_layout_says_so() -> None:
    """Images this bright reach the cap: the layout without it gives other embeddings."""
    backbone, batch = with_random_statistics(small("mobilefacenet_relu6")), 50 * images(dtype=torch.float64)
    seen: dict[str, float] = {}
    for name in ("conv1", "dw_conv"):
        backbone.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.update({name: output.max().item()})
        )
    backbone(batch)
    assert seen["conv1"] == 6
    assert seen["dw_conv"] > 6


@pytest.fixture(scope="module")
def public(real_data: Path) -> tuple[Backbone, Backbone]:
    """The public network from its PyTorch weights, loaded strictly, and from its ONNX file."""
    folder = real_data / "models"
    backbone = create_backbone("mobilefacenet_relu6", embedding_dim=128)
    load_weights(backbone, folder / "mobilefacenet128.pt")
    return backbone.eval(), create_backbone(f"onnx:{folder / 'mobilefacenet128.onnx'}")


@pytest.mark.real
def test_the_public_network_equals_its_onnx_twin_on_noise(public: tuple[Backbone, Backbone]) -> None:
    ours, theirs = public
    batch = 3 * images(count=4, size=(112, 112))
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), theirs(batch), rtol=0, atol=1e-4)


@pytest.mark.real
def test_the_public_network_equals_its_onnx_twin_on_faces(public: tuple[Backbone, Backbone], real_data: Path) -> None:
    ours, theirs = public
    pairs = PairSet.load(real_data / "lfw" / "lfw.bin")
    faces = [decode_image(image, (112, 112), "a face") for image in pairs.images[:12]]
    batch = IMAGENET.convert(torch.from_numpy(np.stack(faces)).movedim(-1, 1))
    with torch.no_grad():
        left, right = ours(batch), theirs(batch)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-4)
    cosine = F.cosine_similarity(left[::2], left[1::2])
    assert cosine[torch.from_numpy(pairs.is_same[:6])].min() > 0.3
