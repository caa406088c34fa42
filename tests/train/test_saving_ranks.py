"""Background saves of two processes (gloo): beside training's own collectives, and failures of one rank."""

from __future__ import annotations

import errno
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from gkd.core import distributed
from gkd.core.distributed import end_process
from gkd.train.checkpoint import Checkpoints
from gkd.train.saving import BackgroundSaver

ROWS = torch.arange(15.0).reshape(5, 3)


def start(rank: int, folder: str) -> BackgroundSaver:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    return BackgroundSaver(Checkpoints(Path(folder) / "run", keep_last=9), timeout_minutes=1)


def slow_stream(delay_seconds: float) -> None:
    """Let every file of a checkpoint take a while, so that training surely runs beside it."""
    original = FileSystem.create_stream

    def create_stream(*arguments: Any, **options: Any) -> Any:
        time.sleep(delay_seconds)
        return original(*arguments, **options)

    FileSystem.create_stream = create_stream  # type: ignore[method-assign]


def train_beside(saver: BackgroundSaver, rank: int) -> int:
    """Reduce over the default group for as long as the save runs; every sum is checked. Returns how many there were."""
    count, is_running = 0, True
    while is_running:
        count += 1
        total = distributed.all_reduce_sum(torch.full((1000,), float(count + rank)))
        assert torch.equal(total, torch.full((1000,), 2.0 * count + 1))
        assert distributed.gather_objects((count, rank)) == [(count, 0), (count, 1)]
        assert saver._thread is not None
        is_running = any(distributed.gather_objects(saver._thread.is_alive()))
    return count


def one_rank(rank: int, folder: str) -> None:
    saver = start(rank, folder)
    save_beside_training(rank, saver)
    fail_one_rank(rank, saver)
    saver.close()
    end_process(0)


def save_beside_training(rank: int, saver: BackgroundSaver) -> None:
    mesh = init_device_mesh("cpu", (2,))
    shards = distribute_tensor(ROWS, mesh, [Shard(0)])
    weight = torch.full((40, 3), 7.0 + rank)
    seen: list[int] = []
    slow_stream(0.2)
    saver.save(1, {"weight": weight, "rows": shards}, {"rank": rank}, also=lambda: seen.append(rank))
    weight.zero_()
    shards.to_local().zero_()  # type: ignore[attr-defined]
    assert train_beside(saver, rank) > 20
    saver.wait()
    assert seen == [0] * (1 - rank)
    assert saver.num_failed == 0
    # One number stands for what rank 0 stores.
    assert saver.staged["weight"].untyped_storage().nbytes() == (480 if rank == 0 else 4)
    assert saver.last_path == saver.checkpoints.latest()
    found: dict[str, Tensor] = {"weight": weight, "rows": distribute_tensor(torch.zeros(5, 3), mesh, [Shard(0)])}
    assert saver.last_path is not None
    assert saver.checkpoints.load(saver.last_path, found) == {"rank": 0}
    assert torch.equal(found["rows"].full_tensor(), ROWS)  # type: ignore[attr-defined]
    assert weight.unique().tolist() == [7.0]


def fail_one_rank(rank: int, saver: BackgroundSaver) -> None:
    """Each failure is known to both ranks with the same words, and the next save works."""
    original = FileSystem.create_stream
    rows = distribute_tensor(ROWS, init_device_mesh("cpu", (2,)), [Shard(0)])

    def full_disk(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if rank == 1:
        FileSystem.create_stream = full_disk  # type: ignore[method-assign]
    saver.save(2, {"rows": rows}, {})
    train_beside(saver, rank)
    saver.wait()
    FileSystem.create_stream = original  # type: ignore[method-assign]
    expect(saver, 1, "rank 1: OSError: [Errno 28] No space left on device")

    saver.save(3, {"a": torch.ones(rank + 1)}, {})
    saver.wait()
    expect(saver, 2, "ranks 0 and 1 differ in the tensors to save, first in ('a'")

    def refuse() -> None:
        raise PermissionError("weights")

    saver.save(4, {"rows": rows}, {}, also=refuse if rank == 0 else None)
    saver.wait()
    expect(saver, 3, "step 4 failed: PermissionError: weights")

    copies = saver._copies.take
    if rank == 1:
        saver._copies.take = lambda tensors: copies({"a": object()["b"]})  # type: ignore[index, method-assign]
    saver.save(5, {"rows": rows}, {})
    saver.wait()
    saver._copies.take = copies  # type: ignore[method-assign]
    expect(saver, 4, "rank 1: the state could not be copied to host memory: TypeError")

    saver.save(6, {"rows": rows}, {})
    saver.wait()
    assert saver.num_failed == 4
    assert [path.name for path in sorted(saver.checkpoints.folder.iterdir())] == [
        "step_00000001",
        "step_00000004",
        "step_00000006",
    ]


def expect(saver: BackgroundSaver, num_failed: int, text: str) -> None:
    assert saver.num_failed == num_failed
    assert text in str(saver.last_error)
    errors = distributed.gather_objects(saver.last_error)
    assert errors[0] == errors[1]


def test_saves_beside_training(tmp_path: Path) -> None:
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)


def lose_the_group(rank: int, folder: str) -> None:
    """Rank 1 is slower than the timeout: the save is lost on both, and the next one works on a new group."""
    saver = start(rank, folder)
    saver.timeout_minutes = 1 / 60
    saver._group = distributed.new_group(saver.timeout_minutes)
    original = FileSystem.create_stream
    if rank == 1:
        slow_stream(3.0)
    rows = distribute_tensor(ROWS, init_device_mesh("cpu", (2,)), [Shard(0)])
    saver.save(1, {"rows": rows}, {})
    saver.wait()
    FileSystem.create_stream = original  # type: ignore[method-assign]
    assert saver.num_failed == 1
    assert "could not reach each other" in str(saver.last_error)
    saver.timeout_minutes = 1
    saver.save(2, {"rows": rows}, {})
    saver.wait()
    assert saver.num_failed == 1
    assert saver.last_path == Path(folder) / "run" / "step_00000002"
    assert [path.name for path in saver.last_path.parent.iterdir()] == ["step_00000002"]
    end_process(0)


def test_a_group_that_timed_out_is_replaced(tmp_path: Path) -> None:
    mp.spawn(lose_the_group, (str(tmp_path),), nprocs=2)


def die_during_the_save(rank: int, folder: str) -> None:
    saver = start(rank, folder)
    if rank == 1:
        FileSystem.create_stream = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    rows = distribute_tensor(ROWS, init_device_mesh("cpu", (2,)), [Shard(0)])
    saver.save(1, {"rows": rows}, {})
    saver.close()
    (Path(folder) / "ended").write_text(str(saver.last_error))
    end_process(0)


def test_a_rank_that_dies_does_not_hold_the_other_at_its_exit(tmp_path: Path) -> None:
    context = mp.spawn(die_during_the_save, (str(tmp_path),), nprocs=2, join=False)
    for process in context.processes:
        process.join(60)
    assert [process.exitcode for process in context.processes] == [0, -signal.SIGKILL]
    assert "the ranks could not reach each other" in (tmp_path / "ended").read_text()
    assert Checkpoints(tmp_path / "run").latest() is None


@pytest.mark.parametrize("value", [None, "text"])
def test_one_process_needs_no_group(value: object) -> None:
    assert distributed.new_group(1) is None
    assert distributed.broadcast_object(value, None) == value
    assert distributed.gather_objects(value, None) == [value]
    distributed.barrier(None)
    assert distributed.all_reduce_max(torch.ones(1), None).item() == 1
