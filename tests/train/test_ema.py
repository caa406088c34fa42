"""The moving average against a float64 loop; swapping, resuming, cost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gkd.core.errors import ConfigError
from gkd.train.ema import Ema
from gkd.train.optim import build_sgd
from gkd.train.state import run_tensors


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 2))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, steps: range) -> None:
    module.train()
    for step in steps:
        images = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(images).square().sum().backward()
        optimizer.step()
        ema.update(step)


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.3, 0.9, 0.999])
def test_it_is_the_average_written_out(decay):
    module = network()
    ema = Ema(module, decay)
    wanted = {name: tensor.tolist() for name, tensor in flat(module).items()}
    for step in range(30):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape))
            module[1].running_var.mul_(1.1)
        ema.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        for name, tensor in flat(module).items():
            wanted[name] = [
                kept * old + (1 - kept) * new for old, new in zip(wanted[name], tensor.tolist(), strict=True)
            ]
    assert ema.tensors.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(ema.tensors[name].flatten().double(), torch.tensor(values).double())


def flat(module: nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    return {name: tensor.flatten().double() for name, tensor in state.items() if tensor.is_floating_point()}


def test_counters_are_not_averaged():
    names = set(Ema(network(), 0.9).tensors)
    assert "1.num_batches_tracked" not in names
    assert names == {name for name in network().state_dict() if name != "1.num_batches_tracked"}


def test_its_statistics_are_those_of_the_batch_norms():
    ema = Ema(network(), 0.9)
    found = ema.statistics()
    assert list(found) == ["1.running_mean", "1.running_var"]
    assert found["1.running_var"] is ema.tensors["1.running_var"]


def test_the_averages_are_in_the_module_inside_only():
    module = network()
    ema = Ema(module, 0.99)
    train(module, build_sgd(module, lr=0.1), ema, range(5))
    live, averages = copies(module.state_dict()), copies(ema.tensors)
    assert not torch.equal(live["4.weight"], averages["4.weight"])
    pointers = [tensor.data_ptr() for tensor in module.state_dict().values()]
    with ema.applied():
        inside = module.state_dict()
        assert_equal({name: inside[name] for name in averages}, averages)
    assert_equal(module.state_dict(), live)
    assert_equal(ema.tensors, averages)
    assert [tensor.data_ptr() for tensor in module.state_dict().values()] == pointers


def test_the_live_weights_come_back_when_the_body_fails():
    module = network()
    ema = Ema(module, 0.99)
    train(module, build_sgd(module, lr=0.1), ema, range(3))
    live, averages = copies(module.state_dict()), copies(ema.tensors)
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert_equal(module.state_dict(), live)
    assert_equal(ema.tensors, averages)
    with ema.applied():  # and it can be applied again
        pass


def test_values_that_equal_nothing_survive_the_swap():
    module = network()
    with torch.no_grad():
        module[4].bias.copy_(torch.tensor([float("nan"), -0.0]))
    ema = Ema(module, 0.5)
    with torch.no_grad():
        module[4].bias.copy_(torch.tensor([float("inf"), 0.0]))
    with ema.applied():
        assert module[4].bias[0].isnan()
        assert module[4].bias[1].signbit()
    assert module[4].bias.tolist() == [float("inf"), 0.0]
    assert not module[4].bias[1].signbit()


def test_applied_holds_neither_an_update_nor_itself():
    ema = Ema(network(), 0.9)
    with ema.applied():
        with pytest.raises(AssertionError, match="holds the averages"):
            ema.update(0)
        with pytest.raises(AssertionError, match="holds the averages already"), ema.applied():
            pass


def test_a_module_cast_after_it_was_made_is_noticed():
    module = network()
    ema = Ema(module, 0.9)
    module.double()
    with pytest.raises(AssertionError, match=r"moved or cast after its Ema was made: 0\.weight"), ema.applied():
        pass


def test_frozen_parameters_are_their_own_average():
    module = network()
    module[0].requires_grad_(False)
    ema = Ema(module, 0.97)
    before = module[0].weight.clone()
    train(module, build_sgd(module, lr=0.1), ema, range(25))
    assert torch.equal(ema.tensors["0.weight"], before)


def test_a_resumed_average_is_bit_identical():
    whole = network()
    optimizer, ema = build_sgd(whole, lr=0.05), Ema(whole, 0.9)
    train(whole, optimizer, ema, range(6))
    saved = copies(run_tensors(whole, optimizer, ema))
    train(whole, optimizer, ema, range(6, 12))
    other = network(seed=9)
    optimizer_2, ema_2 = build_sgd(other, lr=0.05), Ema(other, 0.9)
    found = run_tensors(other, optimizer_2, ema_2)
    assert found.keys() == saved.keys()
    for name, tensor in found.items():
        tensor.copy_(saved[name])
    train(other, optimizer_2, ema_2, range(6, 12))
    assert_equal(run_tensors(other, optimizer_2, ema_2), run_tensors(whole, optimizer, ema))


def test_it_changes_nothing_of_the_training():
    plain, averaged = network(), network()
    optimizer, optimizer_2 = build_sgd(plain, lr=0.05), build_sgd(averaged, lr=0.05)
    ema, idle = Ema(averaged, 0.9), Ema(copy.deepcopy(plain), 0.0)
    train(plain, optimizer, idle, range(4))
    train(averaged, optimizer_2, ema, range(2))
    with ema.applied():
        averaged.eval()(torch.randn(2, 3, 4, 4))
    train(averaged, optimizer_2, ema, range(2, 4))
    assert_equal(averaged.state_dict(), plain.state_dict())


def test_an_update_is_one_call_over_all_tensors(monkeypatch):
    calls = []
    whole = torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *args: (calls.append(len(args[0])), whole(*args)))
    ema = Ema(network(), 0.9)
    ema.update(0)
    assert calls == [len(ema.tensors)]


@pytest.mark.gpu
def test_an_update_does_not_wait_for_the_device():
    module = network().cuda()
    ema = Ema(module, 0.9)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ema.update(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match=r"the decay of the moving average must lie in 0 to 1, 1 excluded, got"):
        Ema(network(), decay)
