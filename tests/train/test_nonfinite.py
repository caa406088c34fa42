"""Steps with a loss or gradient that is not finite: named, kept, left out or the end of the run, on all ranks alike."""

from __future__ import annotations

import logging
import os
import pickle
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from gkd.core.distributed import end_process
from gkd.core.errors import CheckpointError, ConfigError, GkdError
from gkd.core.types import Batch, Losses
from gkd.train.nonfinite import NonFiniteGuard
from gkd.train.nonfinite_dump import load_dump
from gkd.train.nonfinite_trace import trace

NAN, INF = float("nan"), float("inf")


def batch(*sample_ids: int) -> Batch:
    count = len(sample_ids)
    images = torch.arange(count * 12, dtype=torch.uint8).reshape(count, 3, 2, 2)
    return Batch(images, torch.zeros(count, dtype=torch.int64), torch.tensor(sample_ids), torch.zeros(count).bool())


def losses(classification: float = 1.0, primary: float = 2.0, total: float | None = None) -> Losses:
    values = {"classification": classification, "gkd/primary": primary}
    parts = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    whole = torch.tensor(classification + primary if total is None else total)
    return Losses(whole, parts)


def check_bad(guard: NonFiniteGuard, step: int = 3, scale: float | None = None, **bad: float) -> bool:
    return guard.check(step, torch.tensor(NAN), [losses(**bad)], [batch(7, 9)], scale)


def message_of(guard: NonFiniteGuard, step: int = 3, scale: float | None = None, **bad: float) -> str:
    with pytest.raises(GkdError) as caught:
        check_bad(guard, step, scale, **bad)
    return str(caught.value)


def test_a_finite_norm_lets_the_step_pass_and_writes_nothing(tmp_path):
    assert NonFiniteGuard(tmp_path).check(0, torch.tensor(1.0), [losses()], [batch(1)])
    assert not list(tmp_path.iterdir())


def test_only_the_norm_is_read_of_a_good_step(tmp_path):
    """Anything else would make the host wait for the device once more in every step."""
    meta = Losses(torch.empty((), device="meta"), {"classification": torch.empty((), device="meta")})
    assert NonFiniteGuard(tmp_path).check(0, torch.tensor(1.0), [meta], [batch(1)])


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"classification": NAN}, "the loss classification is not finite"),
        ({"primary": -INF}, "the loss gkd/primary is not finite"),
        ({"classification": NAN, "primary": INF}, "losses classification, gkd/primary are not finite"),
        ({"total": INF}, "the loss total is not finite"),
        ({}, "the gradient is not finite (all losses are finite)"),
    ],
)
def test_the_run_stops_and_says_what_where_and_what_to_do(tmp_path, bad, what):
    message = message_of(NonFiniteGuard(tmp_path), step=12, **bad)
    dump = tmp_path / "nonfinite" / "step_00000012_rank0.pt"
    assert message.startswith(f"step 12: {what}; nothing was updated. ")
    assert ("are samples 7, 9." in message) == bool(bad)
    assert f"python tools/replay.py {tmp_path} {dump}." in message
    assert message.endswith(
        "Lower optim.lr, set optim.clip_norm, or use train.precision=fp32, and go on with that from a checkpoint "
        "before it by train.resume=PATH"
    )


def test_of_several_micro_batches_only_the_bad_ones_images_are_named(tmp_path):
    seen = [losses(), losses(primary=NAN), losses()]
    with pytest.raises(GkdError, match=r"are samples 20, 21, .*34, 35 … \(30 in all\)\. To see"):
        NonFiniteGuard(tmp_path).check(0, torch.tensor(NAN), seen, [batch(1, 2), batch(*range(20, 50)), batch(3)])


def test_a_dump_holds_the_step_as_plain_tensors_and_numbers(tmp_path):
    images = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8)[:2]  # a view of much more
    part = Batch(images, torch.tensor([4, 5]), torch.tensor([7, 9]), torch.tensor([True, False]))
    with pytest.raises(GkdError, match="loss scale 8"):
        NonFiniteGuard(tmp_path).check(12, torch.tensor(INF), [losses(primary=NAN)], [part], scale=8.0)
    path = tmp_path / "nonfinite" / "step_00000012_rank0.pt"
    plain = torch.load(path, weights_only=True)
    assert (plain["step"], plain["rank"], plain["num_ranks"], plain["scale"], plain["norm"]) == (12, 0, 1, 8.0, INF)
    assert path.stat().st_size < 10_000
    dump = load_dump(path)
    assert dump.losses[0]["classification"] == 1.0
    for name in ("images", "labels", "sample_ids", "is_flipped"):
        assert torch.equal(getattr(dump.batches[0], name), getattr(part, name)), name


def test_only_the_newest_dumps_of_a_rank_are_kept(tmp_path):
    other = tmp_path / "nonfinite" / "step_00000001_rank1.pt"
    other.parent.mkdir()
    other.touch()
    guard = NonFiniteGuard(tmp_path, action="skip", max_dumps=2)
    for step in (5, 6, 100_000_000):
        check_bad(guard, step)
    names = {path.name for path in other.parent.iterdir()}
    assert names == {other.name, "step_00000006_rank0.pt", "step_100000000_rank0.pt"}


def test_a_dump_that_cannot_be_written_hides_nothing(tmp_path):
    (tmp_path / "nonfinite").write_text("in the way")
    message = message_of(NonFiniteGuard(tmp_path), primary=NAN)
    assert message.startswith("step 3: the loss gkd/primary is not finite; nothing was updated")
    assert "A batch could not be kept for a replay (" in message
    assert "replay.py" not in message


def test_steps_are_left_out_until_too_many_in_a_row(tmp_path, caplog):
    guard = NonFiniteGuard(tmp_path, action="skip", max_skipped=2)
    with caplog.at_level(logging.WARNING):
        assert not check_bad(guard, 0, primary=NAN)
        assert not check_bad(guard, 1)
        assert guard.check(2, torch.tensor(1.0), [losses()], [batch(1)])
        assert not check_bad(guard, 3)
        assert not check_bad(guard, 4)
    assert guard.num_skipped == 4
    assert "step 0: the loss gkd/primary is not finite; the step is left out (1 so far)" in caplog.text
    assert "(3 such steps in a row); nothing was updated" in message_of(guard, 5)


def test_a_step_left_out_leaves_no_trace_in_the_batch_norms(tmp_path):
    guard = NonFiniteGuard(tmp_path, action="skip")
    norm = nn.BatchNorm1d(2)
    norm(torch.randn(4, 2))
    for _ in range(2):
        before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        guard.keep(norm.buffers())
        norm(torch.full((4, 2), NAN))
        assert norm.running_mean.isnan().all()
        check_bad(guard)
        assert all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
        guard.keep(norm.buffers())
        norm(torch.randn(4, 2))  # a good step moves them on
        assert guard.check(9, torch.tensor(1.0), [losses()], [batch(1)])
        assert norm.running_mean.isfinite().all()
        assert not torch.equal(norm.running_mean, before["running_mean"])


def test_a_run_that_stops_keeps_no_copy_of_the_buffers(tmp_path):
    guard = NonFiniteGuard(tmp_path)
    guard.keep(iter([torch.ones(1)]))
    assert guard._kept == []


def test_an_overflow_of_the_loss_scale_is_no_fault_until_the_scale_is_down(tmp_path):
    guard = NonFiniteGuard(tmp_path)
    assert not check_bad(guard, scale=65536.0)
    assert not check_bad(guard, scale=2.0)
    assert (guard.num_overflows, guard.num_skipped) == (2, 0)
    assert not list(tmp_path.iterdir())
    assert "step 3: the gradient is not finite (all losses are finite) (loss scale 1)" in message_of(guard, scale=1.0)
    assert "the loss gkd/primary is not finite (loss scale 1024)" in message_of(guard, scale=1024.0, primary=NAN)


@pytest.mark.parametrize("settings", [{"action": "ignore"}, {"max_skipped": 0}, {"max_dumps": 0}])
def test_settings_out_of_range_are_refused(tmp_path, settings):
    with pytest.raises(ConfigError, match=r"must be (stop or skip, got 'ignore'|1 or more)"):
        NonFiniteGuard(tmp_path, **settings)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    run = Path(folder) / "run"
    seen = [losses(primary=NAN if rank == 1 else 2.0)]
    for scale in (None, 1024.0):  # with a loss scale too it is the loss that is bad
        with pytest.raises(GkdError) as caught:
            NonFiniteGuard(run).check(5, torch.tensor(NAN), seen, [batch(10 * rank, 10 * rank + 1)], scale)
        message = str(caught.value)
        assert "seen by rank 1 of 2 ranks); nothing was updated" in message
        assert "that gave it on rank 1 are samples 10, 11. To see" in message
        assert f"replay.py {run} {run / 'nonfinite' / 'step_00000005_rank1.pt'}." in message
    assert not NonFiniteGuard(run).check(6, torch.tensor(NAN), [losses()], [batch(1)], 1024.0)
    dist.barrier()
    end_process(0)


def test_two_ranks_agree_and_name_the_one_that_saw_it(tmp_path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    dumps = [load_dump(tmp_path / "run" / "nonfinite" / f"step_00000005_rank{rank}.pt") for rank in (0, 1)]
    assert [(dump.rank, dump.num_ranks, dump.batches[0].sample_ids.tolist()) for dump in dumps] == [
        (0, 2, [0, 1]),
        (1, 2, [10, 11]),
    ]


class Command:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_hostile_dump_runs_nothing(tmp_path):
    path = tmp_path / "step_00000001_rank0.pt"
    path.write_bytes(pickle.dumps(Command(tmp_path / "witness"), protocol=2))
    with pytest.raises(CheckpointError, match="nothing was run"):
        load_dump(path)
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"step": None}, "its numbers are"),
        ({"rank": -1}, "its numbers are"),
        ({"batches": []}, "its batches 0"),
        ({"losses": 3}, "not iterable"),
        ({"batches": [{}]}, "no 'labels'"),
        ({"images": torch.zeros(2, 3, 2, 2)}, "its images are not 2 of torch.uint8"),
        ({"images": torch.zeros(2, 4, 2, 2, dtype=torch.uint8)}, r"its images have the shape \(2, 4, 2, 2\)"),
        ({"sample_ids": torch.zeros(3, dtype=torch.int64)}, "its sample_ids are not 2"),
    ],
)
def test_a_file_that_is_no_dump_is_refused(tmp_path, changes, reason):
    with pytest.raises(GkdError):
        NonFiniteGuard(tmp_path).check(1, torch.tensor(NAN), [losses()], [batch(1, 2)])
    path = tmp_path / "nonfinite" / "step_00000001_rank0.pt"
    plain = torch.load(path, weights_only=True)
    for name, value in changes.items():
        (plain if name in plain else plain["batches"][0])[name] = value
    torch.save(plain, path)
    with pytest.raises(CheckpointError, match=rf"is no dump of a training step \(.*{reason}"):
        load_dump(path)


class Root(nn.Module):
    """A square root, whose slope at 0 is infinite, behind two linear layers."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 2), nn.Linear(2, 1)
        self.offset = offset

    def forward(self, batch: Batch) -> Losses:
        value = self.second(self.first(batch.images.flatten(1).float()))
        root = ((value - value.detach()) + self.offset).sqrt().mean()
        return Losses(root, {"root": root})


def test_a_trace_names_the_gradients_where_every_loss_is_finite():
    objective = Root(0.0)
    found = trace(objective, batch(1, 2))
    assert found.losses == {"root": 0.0, "total": 0.0}
    assert (found.is_bad, found.module) == (True, None)
    # From the loss back, and both of one layer in either order.
    assert {name.split(".")[0] for name in found.gradients[:2]} == {"second"}
    assert len(found.gradients) == 4
    assert not trace(Root(1.0), batch(1, 2)).is_bad


def test_a_trace_names_the_first_module_and_leaves_no_hook():
    objective = Root(1.0)
    with torch.no_grad():
        objective.first.weight[0, 0] = INF
    found = trace(objective, batch(1, 2))
    assert found.module == "first (Linear)"
    assert found.is_bad
    assert not objective.first._forward_hooks
    assert not objective.first.weight._post_accumulate_grad_hooks


def test_a_trace_looks_into_a_teacher_that_is_no_sub_module():
    objective = Root(1.0)
    teacher = nn.Sequential(nn.Linear(12, 1))
    with torch.no_grad():
        teacher[0].bias.fill_(NAN)
    objective.__dict__["teacher"] = teacher
    original = objective.forward
    objective.forward = lambda batch: (teacher(batch.images.flatten(1).float()), original(batch))[1]
    assert trace(objective, batch(1)).module == "teacher.0 (Linear)"
