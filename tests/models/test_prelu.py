"""PReLU's way back: torch's numbers, in every layout and precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gkd.models import prelu
from gkd.models.prelu import PReLU

LAYOUTS = {"last": torch.channels_last, "planes": torch.contiguous_format}


def maps(num: int = 3, channels: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(num, channels, 6, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    values.flatten()[::11] = 0.0
    return values


def both(channels: int = 5, dtype: torch.dtype = torch.float32) -> tuple[PReLU, nn.PReLU]:
    ours, theirs = PReLU(channels), nn.PReLU(channels)
    for module in (ours, theirs):
        with torch.no_grad():
            module.weight.copy_(torch.linspace(-0.5, 1.5, channels))
        module.to(dtype)
    return ours, theirs


def way_back(module: nn.Module, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = inputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    outputs = module(leaf)
    outputs.backward(weights.to(outputs.dtype))
    return outputs.detach(), leaf.grad, module.weight.grad


@pytest.mark.parametrize("numbers_at_once", [1, 40, 2**17])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_values_and_gradients_are_torchs(monkeypatch, numbers_at_once, layout, grad_layout):
    monkeypatch.setattr(prelu, "_NUMBERS_AT_ONCE", numbers_at_once)
    inputs = maps().to(memory_format=LAYOUTS[layout])
    weights = maps(dtype=torch.float32).flip(1).contiguous(memory_format=LAYOUTS[grad_layout])
    ours, theirs = (way_back(module, inputs, weights) for module in both())
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[1].stride() == inputs.stride()
    torch.testing.assert_close(ours[2], theirs[2])


def test_gradients_are_those_of_differences():
    module = PReLU(5).double()
    inputs = maps(2).double()
    inputs = torch.where(inputs.abs() < 1e-2, 0.3, inputs).requires_grad_()  # no kink within a difference
    assert torch.autograd.gradcheck(module, (inputs,))
    assert torch.autograd.gradcheck(
        lambda slopes: torch.func.functional_call(module, {"weight": slopes}, (inputs,)), (module.weight,)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_torchs(dtype):
    inputs = maps(dtype=dtype).contiguous(memory_format=torch.channels_last)
    ours, theirs = (way_back(module, inputs, maps().flip(1)) for module in both(dtype=dtype))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], theirs[2], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_what_torch_gives(dtype):
    def run(module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return way_back(module, maps(dtype=dtype), maps().flip(1))

    ours, theirs = map(run, both())
    assert ours[0].dtype == torch.bfloat16
    assert [one.dtype for one in ours] == [one.dtype for one in theirs]
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], theirs[2], rtol=2e-2, atol=2e-2)


def test_frozen_slopes_and_empty_batches():
    module = PReLU(5)
    module.weight.requires_grad_(False)
    inputs = maps().requires_grad_()
    module(inputs).sum().backward()
    assert inputs.grad is not None
    assert module.weight.grad is None
    trained = PReLU(5)
    trained(maps(0)).sum().backward()
    assert trained.weight.grad.tolist() == [0.0] * 5


def test_other_shapes_are_torchs_own():
    for channels, inputs in ((1, maps()), (5, maps()[:, :, 0, 0]), (5, maps()[:, :, 0])):
        ours, theirs = (way_back(module, inputs, inputs + 1) for module in both(channels))
        for left, right in zip(ours, theirs, strict=True):
            assert torch.equal(left, right)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exporters_see_torchs_own_operator():
    module = PReLU(5)
    traced = [
        str(torch.jit.trace(module, maps()).graph),
        torch.export.export(module, (maps(),)).graph_module.code,
    ]
    assert all("prelu" in code for code in traced)
    assert not any("_PReLU" in code or "PythonOp" in code for code in traced)


def test_it_keeps_torchs_names():
    assert list(PReLU(3).state_dict()) == list(nn.PReLU(3).state_dict())
    assert isinstance(PReLU(3), nn.PReLU)
