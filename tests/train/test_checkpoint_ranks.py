"""Checkpoints of two processes (gloo): saved on two and loaded on one or two, shards, and failures of one rank."""

from __future__ import annotations

import errno
import os
import re
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

from gkd.core.distributed import end_process
from gkd.core.errors import CheckpointError
from gkd.train.checkpoint import Checkpoints

CENTRES = torch.arange(15.0).reshape(5, 3)


def replicated(fill: float) -> dict[str, Tensor]:
    return {"weight": torch.full((40, 3), fill), "running_mean": torch.full((7,), fill + 0.5), "step": torch.tensor(3)}


def expect(message: str, checkpoints: Checkpoints, step: int, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        checkpoints.save(step, tensors, {})


def fail_as_full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    checkpoints = Checkpoints(Path(folder) / "run")
    save_and_load(rank, checkpoints)
    fail(rank, checkpoints)
    dist.destroy_process_group()
    end_process(0)


def save_and_load(rank: int, checkpoints: Checkpoints) -> None:
    mesh = init_device_mesh("cpu", (2,))
    shards = {"centres": distribute_tensor(CENTRES, mesh, [Shard(0)])}
    # What the ranks disagree on (BatchNorm statistics) is rank 0's.
    path = checkpoints.save(1, replicated(float(rank)) | shards, {"rank": rank}, score=0.5)
    assert checkpoints.latest() == checkpoints.best() == path
    found = replicated(9.0) | {"centres": distribute_tensor(torch.zeros(5, 3), mesh, [Shard(0)])}
    assert checkpoints.load(path, found) == {"rank": 0}
    assert all(torch.equal(found[name], tensor) for name, tensor in replicated(0.0).items())
    assert torch.equal(found["centres"].full_tensor(), CENTRES)  # type: ignore[attr-defined]


def fail(rank: int, checkpoints: Checkpoints) -> None:
    """Each failure of one rank is raised on both, and the next collective still fits."""
    expect(
        "ranks 0 and 1 differ in the tensors to save, first in ('x', (1,)", checkpoints, 2, {"x": torch.ones(rank + 1)}
    )
    bad: dict[str, Any] = {"x": torch.ones(1) if rank == 0 else 1}
    expect("rank 1: `x` is a int, not a tensor", checkpoints, 2, bad)
    original = FileSystem.create_stream
    if rank == 1:
        FileSystem.create_stream = fail_as_full  # type: ignore[method-assign]
    expect("rank 1: OSError: [Errno 28] No space left on device", checkpoints, 2, replicated(0.0))
    FileSystem.create_stream = original  # type: ignore[method-assign]
    wanted = replicated(0.0) | {"centres": torch.zeros(5, 3)} if rank == 0 else {"a": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"^rank 1: the checkpoint .* 1 missing \(a\), 4 unexpected"):
        checkpoints.load(checkpoints.folder / "step_00000001", wanted)
    assert checkpoints.latest() == checkpoints.folder / "step_00000001"


def test_two_ranks_save_and_one_loads(tmp_path: Path) -> None:
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    checkpoints = Checkpoints(tmp_path / "run")
    latest = checkpoints.latest()
    assert latest is not None
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_00000001"]
    assert {path.name for path in latest.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    found = replicated(9.0) | {"centres": torch.zeros(5, 3)}
    assert checkpoints.load(latest, found) == {"rank": 0}
    assert torch.equal(found["centres"], CENTRES)
    assert all(torch.equal(found[name], tensor) for name, tensor in replicated(0.0).items())
    (latest / "__1_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"__1_0.distcp is missing"):
        checkpoints.load(latest, found)


UNEVEN = torch.arange(28.0).reshape(7, 4)
MOVES = [1, 2, 3, 2]


def sharded(whole: Tensor, num_ranks: int) -> Tensor:
    return distribute_tensor(whole, init_device_mesh("cpu", (num_ranks,)), [Shard(0)])


def move(rank: int, folder: str) -> None:
    """Save and load the same run with each number of ranks in turn; the processes beyond it sit out."""
    torch.set_num_threads(1)
    checkpoints = Checkpoints(Path(folder) / "run")
    for turn, num_ranks in enumerate(MOVES):
        if rank >= num_ranks:
            continue
        store = dist.FileStore(f"{folder}/store{turn}", num_ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=60))
        if turn > 0:
            load_shards(rank, checkpoints, num_ranks, saved_by=MOVES[turn - 1])
        tensors = {"centres": sharded(UNEVEN, num_ranks), "one": sharded(UNEVEN[:1], num_ranks), "bias": torch.ones(3)}
        checkpoints.save(turn, tensors, {"num_ranks": num_ranks})
        dist.destroy_process_group()
    end_process(0)


def load_shards(rank: int, checkpoints: Checkpoints, num_ranks: int, saved_by: int) -> None:
    latest = checkpoints.latest()
    assert latest is not None
    found = {
        "centres": sharded(torch.zeros(7, 4), num_ranks),
        "one": sharded(torch.zeros(1, 4), num_ranks),
        "bias": torch.zeros(3),
    }
    assert checkpoints.load(latest, found) == {"num_ranks": saved_by}
    rows = UNEVEN.chunk(num_ranks)[rank]
    assert torch.equal(found["centres"].to_local(), rows)  # type: ignore[attr-defined]
    assert torch.equal(found["one"].full_tensor(), UNEVEN[:1])  # type: ignore[attr-defined]
    assert torch.equal(found["bias"], torch.ones(3))


def test_shards_of_uneven_rows_move_between_numbers_of_ranks(tmp_path: Path) -> None:
    """7 rows are 4 + 3 on two ranks and 3 + 3 + 1 on three; one row leaves ranks with none."""
    mp.spawn(move, (str(tmp_path),), nprocs=3)
    latest = Checkpoints(tmp_path / "run").latest()
    assert latest is not None
    assert latest.name == f"step_{len(MOVES) - 1:08d}"
