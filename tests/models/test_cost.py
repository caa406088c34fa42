"""Parameter and multiply-accumulate counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gkd.models import count_macs, create_backbone, num_parameters
from gkd.models.backbone import Backbone
from gkd.models.cost import count_activations


@pytest.mark.parametrize(
    ("name", "published_macs"),
    [("mobilefacenet", 437e6), ("mobilefacenet_classic", 221e6), ("iresnet50", 6.3e9), ("iresnet100", 12.1e9)],
)
def test_macs_of_published_networks(name: str, published_macs: float) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert count_macs(backbone) == pytest.approx(published_macs, rel=0.03)


def test_macs_by_hand() -> None:
    backbone = create_backbone(
        "iresnet", layers=(1, 1, 1, 1), width_multiplier=0.0625, input_size=(16, 16), embedding_dim=5
    )
    macs = 16 * 16 * 4 * 3 * 9
    channels, side = 4, 16
    for out_channels in (4, 8, 16, 32):
        macs += side**2 * out_channels * channels * 9
        side //= 2
        macs += side**2 * out_channels * (out_channels * 9 + channels)
        channels = out_channels
    assert count_macs(backbone) == macs + 32 * 5


@pytest.mark.parametrize("is_training", [True, False])
def test_counting_changes_nothing(is_training: bool) -> None:
    backbone = create_backbone("mobilefacenet_classic", width_multiplier=0.25, input_size=(32, 32)).train(is_training)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    first = count_macs(backbone)
    assert first == count_macs(backbone)
    assert backbone.training is is_training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_frozen_parameters_count() -> None:
    module = torch.nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    assert num_parameters(module) == 8


def test_activations_are_what_the_layers_put_out() -> None:
    """Counted by running a small network for real."""
    backbone = create_backbone("iresnet18", embedding_dim=8, width_multiplier=0.125, input_size=(32, 32)).eval()
    sizes: list[int] = []
    for module in backbone.modules():
        if not any(module.children()):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    backbone(torch.zeros(1, 3, 32, 32))
    expected = sum(sizes)
    assert count_activations(backbone) == expected


def test_of_blocks_that_are_computed_again_the_inputs_count_and_the_largest_whole() -> None:
    class Net(Backbone):
        def __init__(self) -> None:
            super().__init__(embedding_dim=2, input_size=(16, 16))
            self.first = nn.Conv2d(3, 4, 1)  # puts out 1024
            small = nn.Sequential(nn.Conv2d(4, 1, 1), nn.Conv2d(1, 2, 1))  # 256 + 512
            large = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 1, 1))  # 2048 + 256
            self.blocks = nn.Sequential(small, large)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.blocks(self.first(images))
            return outputs

    backbone = Net()
    assert count_activations(backbone) == 1024 + 256 + 512 + 2048 + 256
    assert count_activations(backbone, list(backbone.blocks)) == 1024 + (1024 + 512) + (2048 + 256)
