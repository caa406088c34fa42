"""Process-group set-up and the collectives used here; each is the identity where there is one process.

The group exists only between `start()` and `stop()`, never as a side effect of an import.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d

from gkd.core.errors import GkdError

_left_groups: list[ProcessGroup] = []


def is_active() -> bool:
    """Whether a process group has been started."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 where there is one process."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if is_active() else 1


def local_rank() -> int:
    """This process's number on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device() -> torch.device:
    """The device this process trains on: its own GPU where there is one, else the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def process_group(timeout_minutes: float = 10.0) -> Iterator[None]:
    """Start the group that torchrun described in the environment and stop it on the way out.

    Without torchrun (no `WORLD_SIZE`) nothing is started and no port is taken.

    Raises:
        GkdError: the group could not be formed (a port in use, a rank missing), with the address.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    # gloo beside NCCL carries the CPU tensors of checkpoints and metrics.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        raise GkdError(
            f"could not form a group of {os.environ['WORLD_SIZE']} processes at {address}: {reason}; if the port is in "
            "use, give torchrun another with --master-port, or --standalone for a free one on one machine"
        ) from error
    try:
        yield
    finally:
        _leave_groups()


def _leave_groups() -> None:
    """Forget all groups, whose objects stay until the process ends.

    In torch 2.6 the destructor of a group waits for gloo's threads with the interpreter locked, and such a thread may
    be waiting for that lock to free a tensor: the rank would never end. Who had a group ends by `end_process`.
    """
    _left_groups.extend(distributed_c10d._world.pg_map)
    dist.destroy_process_group()


def is_communication_error(error: BaseException) -> bool:
    """Whether `error` comes from talking to other ranks: one of torch's kinds for that, or gloo's, which is any."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def end_process(code: int) -> NoReturn:
    """End a process that had a process group: exit handlers run and output is flushed, but nothing is torn down.

    DDP and device meshes keep gloo's threads alive after the group is destroyed. Such a thread may still be releasing a
    tensor while the interpreter is taken apart, and then the process aborts ("terminate called without an active
    exception") although its work is done.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def new_group(timeout_minutes: float) -> ProcessGroup | None:
    """A gloo group of all ranks beside the default one, so that a thread can talk while training does; None alone.

    Every rank must call this at the same point.

    Args:
        timeout_minutes: how long a rank waits for the others before it gives up.
    """
    if world_size() == 1:
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes))
    assert isinstance(group, ProcessGroup), "every rank is a member"
    return group


def all_reduce_sum(tensor: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The sum of `tensor` over the ranks, in place; returns it. Here and below no `group` is the default group."""
    if world_size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def all_reduce_max(tensor: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The greatest of `tensor` over the ranks, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


def barrier(group: ProcessGroup | None = None) -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier(group=group)


def broadcast_object(value: Any, group: ProcessGroup | None = None) -> Any:
    """Rank 0's `value` on every rank. It travels between our own processes only, never from a file."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def gather_objects(value: Any, group: ProcessGroup | None = None) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered
