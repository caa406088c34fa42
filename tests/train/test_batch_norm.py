"""Batch norms that differ from rank to rank: frozen, averaged, kept and restored; two ranks over gloo."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import CheckpointError, ConfigError
from gkd.train import batch_norm
from gkd.train.batch_norm import (
    averaged,
    freeze_batch_norm,
    keep_frozen,
    own_statistics,
    restore_statistics,
    statistics,
    synchronise_batch_norm,
)
from gkd.train.checkpoint import Checkpoints
from gkd.train.ema import Ema
from gkd.train.optim import GroupRule, build_sgd
from gkd.train.state import run_tensors


def network() -> nn.Sequential:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4))
    return nn.Sequential(stem, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(16, 2))


def test_statistics_are_the_running_means_and_variances():
    module = network()
    module.append(nn.BatchNorm1d(2, track_running_stats=False))
    module.append(nn.SyncBatchNorm(2))  # all ranks have the same
    found = statistics(module)
    assert list(found) == ["0.1.running_mean", "0.1.running_var", "2.running_mean", "2.running_var"]
    assert found["2.running_var"] is module[2].running_var


def test_a_module_that_is_a_batch_norm_has_its_plain_names():
    assert list(statistics(nn.BatchNorm1d(3))) == ["running_mean", "running_var"]


def test_all_batch_norms_are_frozen():
    module = network().train()
    freeze_batch_norm(module)
    module(torch.randn(3, 3, 4, 4))
    assert module[0][1].running_mean.abs().sum() == module[2].running_mean.abs().sum() == 0
    assert module.training
    assert module[0][2].training


def is_kept(module: nn.Sequential) -> tuple[bool, bool]:
    module.train()
    keep_frozen(module)
    return not module[0][1].training, not module[2].training


def test_batch_norms_of_frozen_parts_keep_their_statistics():
    module = network()
    assert is_kept(module) == (False, False)
    module[0].requires_grad_(False)
    assert is_kept(module) == (True, False)
    module(torch.randn(3, 3, 4, 4))
    assert module[0][1].running_mean.abs().sum() == 0
    assert module[2].running_mean.abs().sum() > 0


def test_half_a_frozen_batch_norm_is_trained():
    module = network()
    module[0][1].weight.requires_grad_(False)
    assert is_kept(module) == (False, False)


def test_one_without_parameters_follows_what_is_around_it():
    module = network()
    module.requires_grad_(False)
    assert is_kept(module) == (True, True)
    module[4].requires_grad_(True)
    assert is_kept(module) == (True, False)


def test_synchronised_ones_are_for_cuda():
    with pytest.raises(ConfigError) as caught:
        synchronise_batch_norm(network(), torch.device("cpu"))
    assert str(caught.value) == (
        "train.sync_batch_norm: needs CUDA, and this run is on cpu, for which torch has no synchronised batch norm; "
        "set it to false, or train.freeze_batch_norm to true"
    )


def test_synchronised_ones_keep_names_parameters_and_values():
    module = network()
    module[0][1].weight.requires_grad_(False)
    parameters, state = dict(module.named_parameters()), module.state_dict()
    converted = synchronise_batch_norm(module, torch.device("cuda"))  # converts on any device
    assert type(converted[2]) is nn.SyncBatchNorm
    assert statistics(converted) == {}
    assert all(parameter is parameters[name] for name, parameter in converted.named_parameters())
    assert not converted[0][1].weight.requires_grad
    assert all(torch.equal(tensor, state[name]) for name, tensor in converted.state_dict().items())
    assert converted.state_dict().keys() == state.keys()


def test_with_one_process_nothing_happens():
    module = network()
    with averaged(statistics(module)):
        module.train()(torch.randn(3, 3, 4, 4))
    assert module[2].running_mean.abs().sum() > 0  # a write inside is kept: there was nothing to put back
    assert own_statistics(statistics(module)) == []


def as_if(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)


def test_what_three_ranks_agree_on_stays_as_it_is(monkeypatch):
    as_if(monkeypatch, 0, 3)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: tensor.mul_(3))
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    with averaged({"running_mean": values}):
        assert torch.equal(values, before)
        assert not torch.equal(before * 3 / 3, before)  # which fp32 would have made of them


def text(tensors: dict[str, Tensor]) -> str:
    raw = b"".join(tensor.numpy().tobytes() for tensor in tensors.values())
    return base64.b64encode(raw).decode()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_of_another_number_of_ranks_the_means_stay(monkeypatch, count):
    module = network()
    as_if(monkeypatch, 0, 2)
    restore_statistics([text({"a": torch.full((16,), 7.0)})] * count, statistics(module))
    assert module[2].running_mean.abs().sum() == 0


def test_synchronised_now_the_means_stay(monkeypatch):
    as_if(monkeypatch, 0, 2)
    restore_statistics(["AAAA", "AAAA"], {})


def test_each_tensor_gets_its_own_values_in_its_own_type(monkeypatch):
    as_if(monkeypatch, 1, 2)
    tensors = {"a": torch.tensor([[1.5, -0.0], [float("inf"), 3.0]]), "b": torch.tensor([0.1], dtype=torch.float64)}
    more = {"a": torch.tensor([2.5, 1e-30]).bfloat16()}
    raw = text(tensors | {"c": more["a"].view(torch.int16)})
    found = [{name: torch.zeros_like(tensor) for name, tensor in group.items()} for group in (tensors, more)]
    restore_statistics([raw, raw], *found)
    for group, wanted in zip(found, (tensors, more), strict=True):
        for name, tensor in wanted.items():
            assert torch.equal(group[name], tensor)
    assert found[0]["a"][0, 1].signbit()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("A", "the checkpoint's batch-norm statistics of rank 1 are damaged: "),
        ("ü", "the checkpoint's batch-norm statistics of rank 1 are damaged: "),
        (
            "AAAA",
            "the checkpoint's batch-norm statistics of rank 1 take 3 bytes and those of this network 64; they are",
        ),
        ("", "take 0 bytes"),
    ],
)
def test_damage_is_refused_on_every_rank_and_changes_nothing(monkeypatch, rank, damaged, message):
    module = network()
    as_if(monkeypatch, rank, 2)
    good = text({"a": torch.full((16,), 7.0)})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        restore_statistics([good, damaged], statistics(module))
    assert module[0][1].running_mean.abs().sum() == 0


def test_too_many_ranks_for_a_checkpoint_are_told(monkeypatch, caplog):
    as_if(monkeypatch, 0, 2)
    monkeypatch.setattr(batch_norm, "MAX_STATISTICS_BYTES", 100)
    assert own_statistics(statistics(network())) == []
    assert "the batch-norm statistics of 2 ranks take 0 MiB, which is too much for a checkpoint" in caplog.text


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    module = network().train()
    ema = Ema(module, 0.9)
    for step in range(3):
        module(torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(10 * step + rank)))
        ema.update(step)
    check_means(rank, module, ema)
    check_means_of_equal_values(module)
    check_restoring(rank, module, ema)
    check_frozen_in_ddp(rank)
    check_resuming(rank, Checkpoints(Path(folder) / "run"))
    dist.destroy_process_group()
    distributed.end_process(0)


def check_means(rank: int, module: nn.Module, ema: Ema) -> None:
    groups = (statistics(module), ema.statistics())
    own = [{name: tensor.clone() for name, tensor in group.items()} for group in groups]
    everyone = distributed.gather_objects(own)
    calls = count_all_reduces()
    with suppress(KeyError), averaged(*groups):
        for index, group in enumerate(groups):
            for name, tensor in group.items():
                first, second = (each[index][name].double() for each in everyone)
                assert not torch.equal(first, second)
                assert torch.equal(tensor, ((first + second) / 2).float()), name
        # The average of the averages is what is evaluated.
        with ema.applied():
            first, second = (each[1]["2.running_var"].double() for each in everyone)
            assert torch.equal(module[2].running_var, ((first + second) / 2).float())
        raise KeyError
    assert calls == [4 * 8]
    dist.all_reduce = calls.original
    for group, kept in zip(groups, own, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in group.items())


class Calls(list):
    original = None


def count_all_reduces() -> Calls:
    calls = Calls()
    calls.original = dist.all_reduce

    def counted(tensor: Tensor, *args: object, **kwargs: object) -> object:
        calls.append(tensor.numel())
        return calls.original(tensor, *args, **kwargs)

    dist.all_reduce = counted
    return calls


def check_means_of_equal_values(module: nn.Module) -> None:
    torch.manual_seed(1)
    equal = {"a": torch.randn(1000), "b": torch.randn(7, 3).to(torch.bfloat16)}
    before = {name: tensor.clone() for name, tensor in equal.items()}
    with averaged(equal):
        assert all(torch.equal(tensor, before[name]) for name, tensor in equal.items())


def check_restoring(rank: int, module: nn.Module, ema: Ema) -> None:
    groups = (statistics(module), ema.statistics())
    states = own_statistics(*groups)
    assert len(states) == 2
    assert states[0] != states[1]
    own = [{name: tensor.clone() for name, tensor in group.items()} for group in groups]
    for group in groups:
        for tensor in group.values():
            tensor.zero_()  # what a load of the means would have put there
    restore_statistics(states, *groups)
    for group, kept in zip(groups, own, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in group.items())
    for refused in ([states[0], "AAAA"], ["?", states[1]]):
        with pytest.raises(CheckpointError):
            restore_statistics(refused, *groups)


def check_frozen_in_ddp(rank: int) -> None:
    """A frozen part under DDP: the ranks agree afterwards, it has not moved, and no gradient of it is reduced."""
    module = network()
    optimizer = build_sgd(module, lr=0.1, groups=[GroupRule("0.*", frozen=True)])
    model = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
    before = module[0][0].weight.clone()
    model.train()
    keep_frozen(module)
    for step in range(2):
        optimizer.zero_grad()
        images = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(10 * step + rank))
        model(images).square().sum().backward()
        optimizer.step()
    assert torch.equal(module[0][0].weight, before)
    assert module[0][0].weight.grad is None
    assert module[0][1].running_mean.abs().sum() == 0
    first, second = distributed.gather_objects(module[4].weight.detach())
    assert torch.equal(first, second)
    means = distributed.gather_objects(module[2].running_mean)
    assert not torch.equal(*means)
    names = [name for name in run_tensors(module, optimizer) if name.startswith("momentum/")]
    assert names == ["momentum/1.weight", "momentum/1.bias", "momentum/4.weight", "momentum/4.bias"]


class Training:
    """A network under DDP with its optimiser and average; each rank has its own images."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.module = network().train()
        self.optimizer = build_sgd(self.module, lr=0.05)
        self.ema = Ema(self.module, 0.9)
        self.model = nn.parallel.DistributedDataParallel(self.module, broadcast_buffers=False)

    def steps(self, steps: range) -> None:
        for step in steps:
            images = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(10 * step + self.rank))
            self.optimizer.zero_grad()
            self.model(images).square().sum().backward()
            self.optimizer.step()
            self.ema.update(step)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return run_tensors(self.module, self.optimizer, self.ema)

    @property
    def groups(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return statistics(self.module), self.ema.statistics()


def check_resuming(rank: int, checkpoints: Checkpoints) -> None:
    """As many ranks go on bit for bit; what the checkpoint's tensors hold for others are the means."""
    whole = Training(rank)
    whole.steps(range(3))
    values = {"batch_norm": own_statistics(*whole.groups)}
    with averaged(*whole.groups):
        path = checkpoints.save(3, whole.tensors, values)
        means = whole.groups[0]["2.running_var"].clone()
    whole.steps(range(3, 6))
    other = Training(rank)
    saved = checkpoints.load(path, other.tensors)
    assert torch.equal(other.groups[0]["2.running_var"], means)
    restore_statistics(saved["batch_norm"], *other.groups)
    other.steps(range(3, 6))
    wanted = whole.tensors
    for name, tensor in other.tensors.items():
        assert torch.equal(tensor, wanted[name]), name


def test_two_ranks(tmp_path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
