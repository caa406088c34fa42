"""The convolution that computes in fp32 where bf16 is slow, and there only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gkd.models.convolution import Conv2d

SETTINGS = {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4, "bias": False}


def both(**changes: int) -> tuple[Conv2d, nn.Conv2d]:
    ours, theirs = Conv2d(4, 8, **{**SETTINGS, **changes}), nn.Conv2d(4, 8, **{**SETTINGS, **changes})
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def way_back(module: nn.Module, inputs: Tensor, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    leaf = inputs.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        outputs = module(leaf)
    outputs.backward(torch.ones_like(outputs))
    return outputs.detach(), leaf.grad, module.weight.grad


def maps() -> Tensor:
    return torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changes", [{"stride": 1}, {"groups": 1}])
def test_others_are_torchs_own_in_bf16(changes):
    ours, theirs = (way_back(module, maps(), torch.bfloat16) for module in both(**changes))
    assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_other_precisions_are_torchs_own(dtype):
    ours, theirs = (way_back(module, maps(), dtype) for module in both())
    assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


def test_in_bf16_it_is_the_fp32_one_rounded():
    ours, theirs = both()
    exact = way_back(theirs, maps(), None)
    found = way_back(ours, maps(), torch.bfloat16)
    assert found[0].dtype == torch.bfloat16
    assert torch.equal(found[0], exact[0].bfloat16())
    assert torch.equal(found[1], exact[1])
    assert torch.equal(found[2], exact[2])


def test_without_gradients_it_is_torchs_own():
    ours, theirs = both()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(maps()), theirs(maps()))
