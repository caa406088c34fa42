"""Saves checkpoints in a background thread, on a process group of its own, while training goes on."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from gkd.core import distributed
from gkd.core.errors import CheckpointError, GkdError
from gkd.train.checkpoint import Checkpoints
from gkd.train.checkpoint_agreement import attempt, on_every_rank, on_rank_0
from gkd.train.checkpoint_staging import HostCopies

logger = logging.getLogger(__name__)


class BackgroundSaver:
    """Copies the state to host memory, returns, and writes the copies in a thread.

    A save that fails (a full disk, a folder that is gone) costs its checkpoint and never the run: rank 0 logs the
    reason, every rank counts it, and training goes on. The older checkpoints stay, as `Checkpoints` never deletes one
    before the next is whole. Every method is collective: all ranks call it at the same point of training.

    The thread talks over its own gloo group; the default group, which training uses, is touched only inside `save`,
    in the caller's thread. Where a rank waits for another beyond the timeout (one has died, or its disk hangs) the save
    fails, and the next `save` makes a new group if all ranks live.

    Args:
        checkpoints: where to save.
        timeout_minutes: how long a rank waits for the others.

    Attributes:
        num_failed: how many saves failed.
        last_error: why the last of them failed, or None.
        is_last_whole: whether the newest save, once waited for, left everything that it should.
        last_path: the newest checkpoint that was saved here, or None.
        staged: what is being written, or was last: the copies by name, on rank 0 only. `also` may read them; of class
            weights that are split over the ranks they hold rank 0's rows, and `read_whole` gives the others from the
            checkpoint in `last_path`.
    """

    def __init__(self, checkpoints: Checkpoints, *, timeout_minutes: float = 10.0) -> None:
        self.checkpoints = checkpoints
        self.timeout_minutes = timeout_minutes
        self.num_failed = 0
        self.last_error: str | None = None
        self.is_last_whole = True
        self.last_path: Path | None = None
        self.staged: dict[str, Tensor] = {}
        self._copies = HostCopies()
        self._group = distributed.new_group(timeout_minutes)
        self._is_group_lost = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        *,
        score: float | None = None,
        also: Callable[[], None] | None = None,
    ) -> None:
        """Start to save the state as it is now; blocks for the previous save and for the copying, not for the disk.

        Args:
            step: the global step.
            tensors: as for `Checkpoints.save`; they may change as soon as this returns.
            values: plain JSON values; copied too.
            score: higher is better.
            also: what rank 0 calls in the thread once the checkpoint is whole, such as writing weight files from
                `staged`. It must not touch live tensors.
        """
        self.wait()
        self.is_last_whole = True
        self._renew_group()
        staged, failure, _ = attempt(lambda: (self._copies.take(tensors), copy.deepcopy(values)))
        self.staged, plain = staged or ({}, {})

        def write() -> None:
            self._write(step, plain, score, also, failure)

        self._thread = threading.Thread(target=write, name=f"save-{step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save under way; what came of it is in `num_failed`, `last_error` and `last_path`.

        A rank that waits for others gives up after the timeout; a disk is waited for as long as it takes.
        """
        self._join(None)

    def close(self) -> None:
        """Wait for the save under way, but no longer than the timeout; call it however the run ends."""
        self._join(60.0 * self.timeout_minutes)

    def _join(self, timeout_seconds: float | None) -> None:
        if self._thread is None:
            return
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._count_failure(f"{self._thread.name} did not end within {self.timeout_minutes:g} minutes and is left")
        self._thread = None

    def _renew_group(self) -> None:
        """Replace the group if any rank has lost it: gloo's connections do not outlive a timeout."""
        is_lost = distributed.all_reduce_max(torch.tensor(float(self._is_group_lost)))
        if bool(is_lost):
            self._group = distributed.new_group(self.timeout_minutes)
            self._is_group_lost = False

    def _write(
        self,
        step: int,
        values: dict[str, Any],
        score: float | None,
        also: Callable[[], None] | None,
        failure: str | None,
    ) -> None:
        """The thread: write the copies, or let all ranks know why there are none."""
        started = time.perf_counter()
        try:
            on_every_rank(lambda: _require_no(failure), self._group)
            self.last_path = self.checkpoints.save(step, self.staged, values, score=score, group=self._group)
            on_rank_0(lambda: also() if also is not None else None, self._group)
        except CheckpointError as error:
            self._count_failure(f"the save of step {step} failed: {error}")
        except Exception as error:
            # Not agreed on: the ranks could not talk to each other.
            self._is_group_lost = True
            reason = (str(error) or type(error).__name__).split("\n", 1)[0]
            self._count_failure(f"the save of step {step} failed, for the ranks could not reach each other: {reason}")
        else:
            logger.info("saved %s in %.1f s beside training", self.last_path, time.perf_counter() - started)

    def _count_failure(self, text: str) -> None:
        self.num_failed += 1
        self.last_error = text
        self.is_last_whole = False
        if distributed.rank() == 0:
            logger.error("%s; training goes on, and the checkpoints before it stand", text)


def _require_no(failure: str | None) -> None:
    if failure is not None:
        raise GkdError(f"the state could not be copied to host memory: {failure}")
