"""Feeds training: micro-batches of decoded images, in an order that depends on the settings alone."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, Self, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from gkd.core.errors import ConfigError, DataError
from gkd.data.batch_reader import BatchReader, Failure, RawBatch
from gkd.data.batches import BatchPlan, Task
from gkd.data.face_data import FaceData
from gkd.data.worker_watch import WATCH

__all__ = ["RawBatch", "TrainLoader"]


class TrainLoader:
    """Iterates over the micro-batches of the steps `start_step` to `total_steps` - 1, as `RawBatch`.

    Loading processes start when an iteration does and end with it, however it ends; they only read and decode.

    Args:
        dataset: the face data.
        batch_size: images in a global batch, over all ranks and micro-batches.
        seed: of the order and of the mirroring.
        image_size: (H, W) of every image, in pixels.
        num_workers: loading processes; 0 loads in this one.
        num_micro_batches: into how many parts each global batch is cut.
        rank: this process's number.
        world_size: the number of processes.
        flip_probability: the share of images to be mirrored.
        on_bad_record: "raise" stops at a record that cannot be used; "skip" takes the next usable one instead.
        start_step: the first global step.
        total_steps: one more than the last global step.
        timeout_seconds: how long one micro-batch may take to arrive from a loading process.
        pin_memory: put the images into page-locked memory; without a GPU this does nothing.

    Raises:
        ConfigError: settings out of range, or that leave a rank without an image.
    """

    def __init__(
        self,
        dataset: FaceData,
        *,
        batch_size: int,
        seed: int,
        image_size: tuple[int, int],
        total_steps: int,
        num_workers: int = 0,
        num_micro_batches: int = 1,
        rank: int = 0,
        world_size: int = 1,
        flip_probability: float = 0.5,
        on_bad_record: Literal["raise", "skip"] = "raise",
        start_step: int = 0,
        timeout_seconds: float = 600.0,
        pin_memory: bool = False,
    ) -> None:
        _check_settings(num_workers, flip_probability, on_bad_record, start_step, total_steps, timeout_seconds)
        self._plan = BatchPlan(
            num_images=len(dataset),
            batch_size=batch_size,
            seed=seed,
            num_micro_batches=num_micro_batches,
            rank=rank,
            world_size=world_size,
        )
        self._reader = BatchReader(
            data=dataset,
            image_size=(image_size[0], image_size[1]),
            seed=seed,
            flip_probability=flip_probability,
            is_skipping=on_bad_record == "skip",
        )
        self._steps = (start_step, total_steps)
        self._num_workers = num_workers
        self._timeout_seconds = timeout_seconds
        self._is_pinning = pin_memory and torch.cuda.is_available()
        self._running: list[Iterator[RawBatch]] = []

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self._plan.steps_per_epoch

    def __len__(self) -> int:
        """The number of micro-batches to come."""
        return (self._steps[1] - self._steps[0]) * self._plan.num_micro_batches

    def __iter__(self) -> Iterator[RawBatch]:
        """Start over at `start_step`, ending an iteration that is still going on.

        Raises:
            DataError: a record cannot be used, a loading process died, or nothing came for `timeout_seconds`.
        """
        self.close()
        running = self._iterate()
        self._running.append(running)
        return running

    def close(self) -> None:
        """End the loading processes."""
        for running in self._running:
            cast(Any, running).close()
        self._running.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _iterate(self) -> Iterator[RawBatch]:
        arriving = self._start()
        try:
            while (result := self._next(arriving)) is not None:
                if isinstance(result, Failure):
                    raise result.error_type(result.message)
                yield result
        finally:
            # The loading processes end with the last reference to their iterator.
            del arriving

    def _start(self) -> Iterator[RawBatch | Failure]:
        loader = DataLoader(
            cast("Dataset[RawBatch | Failure]", self._reader),
            batch_size=None,
            sampler=_Tasks(self._plan, *self._steps),
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            pin_memory=self._is_pinning,
            timeout=self._timeout_seconds if self._num_workers else 0,
            worker_init_fn=_quieten_worker,
            # Forked processes start at once and share the index's memory. They never touch CUDA.
            multiprocessing_context="fork" if self._num_workers and sys.platform == "linux" else None,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*use of fork.*", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*suggested max number of worker.*", category=UserWarning)
            arriving = iter(loader)
        if self._num_workers:
            WATCH.install()
        return arriving

    def _next(self, arriving: Iterator[RawBatch | Failure]) -> RawBatch | Failure | None:
        if not self._num_workers:
            return next(arriving, None)
        try:
            with WATCH.waiting():
                return next(arriving, None)
        except RuntimeError as error:
            raise _explain(error, self._timeout_seconds) from error


class _Tasks:
    """The tasks of a run, as the loader of torch wants them: something to iterate over."""

    def __init__(self, plan: BatchPlan, start_step: int, total_steps: int) -> None:
        self._plan = plan
        self._steps = (start_step, total_steps)

    def __iter__(self) -> Iterator[Task]:
        return self._plan.tasks(*self._steps)


def _as_it_is(result: Any) -> Any:
    return result


def _quieten_worker(_worker_id: int) -> None:
    # Ctrl-C in a terminal, and a launcher that ends a group, signal every process of it; the main one decides when
    # loading ends, so that it can still finish its step and save.
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def _explain(error: RuntimeError, timeout_seconds: float) -> DataError:
    reason = str(error).split("\n", 1)[0]
    if "timed out" in reason:
        return DataError(
            f"no batch came from the loading processes for {timeout_seconds:g} seconds; is the disk or network stuck? "
            "raise timeout_seconds if it is only slow"
        )
    return DataError(
        f"a loading process died ({reason}); most often memory or shared memory (/dev/shm) ran out: use fewer workers"
    )


def _check_settings(
    num_workers: int, flip_probability: float, on_bad_record: str, start_step: int, total_steps: int, timeout: float
) -> None:
    if num_workers < 0:
        raise ConfigError(f"num_workers must be 0 or more, got {num_workers}")
    if not 0.0 <= flip_probability <= 1.0:
        raise ConfigError(f"flip_probability must lie in 0 to 1, got {flip_probability}")
    if on_bad_record not in ("raise", "skip"):
        raise ConfigError(f'on_bad_record must be "raise" or "skip", got {on_bad_record!r}')
    if not 0 <= start_step <= total_steps:
        raise ConfigError(f"start_step must lie in 0 to total_steps ({total_steps}), got {start_step}")
    if not timeout > 0:
        raise ConfigError(f"timeout_seconds must be above 0, got {timeout}")
