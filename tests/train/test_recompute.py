"""Blocks that are computed again: the same to the last bit, in less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gkd.core.errors import ConfigError
from gkd.models import create_backbone
from gkd.train.recompute import recompute_blocks

BACKBONES = {
    "iresnet18": {"width_multiplier": 0.125, "input_size": (32, 32)},
    "ir18": {},
    "mobilefacenet": {},
    "mobilefacenet_classic": {"input_size": (32, 32)},
    "mobilefacenet_facex": {},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(name, embedding_dim=16, **BACKBONES[name]).train()


def passed(backbone: nn.Module, is_bf16: bool) -> tuple[list[torch.Tensor], int]:
    """Embeddings, gradients and buffers after two passes, and the bytes that are kept for the way back."""
    num_bytes = 0

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal num_bytes
        num_bytes += tensor.numel() * tensor.element_size()
        return tensor

    found = []
    for seed in (1, 2):
        images = torch.randn(2, 3, *backbone.input_size, generator=torch.Generator().manual_seed(seed))
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16):
                embeddings = backbone(images)
            found.append(embeddings.detach())
            outside = num_bytes
        embeddings.float().square().sum().backward()
    found += [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    return found + [buffer.clone() for buffer in backbone.buffers()], outside


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("name", BACKBONES)
def test_values_gradients_and_statistics_are_the_same(name: str, is_bf16: bool) -> None:
    plain, again = network(name), network(name)
    names = list(again.state_dict())
    assert recompute_blocks(again) > 4
    assert list(again.state_dict()) == names
    expected, plain_bytes = passed(plain, is_bf16)
    found, again_bytes = passed(again, is_bf16)
    assert len(expected) == len(found)
    assert all(torch.equal(left, right) for left, right in zip(expected, found, strict=True))
    assert again_bytes < 0.55 * plain_bytes


def test_evaluation_keeps_nothing_and_is_the_same() -> None:
    plain, again = network("iresnet18").eval(), network("iresnet18").eval()
    recompute_blocks(again)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(images), again(images))


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.checkpoint_activations: this backbone has no row of blocks"):
        recompute_blocks(nn.Linear(2, 2))
