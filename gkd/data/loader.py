"""Feeds training: micro-batches of decoded images, in an order that the plan alone decides.

Loading processes write pixels into memory that they share with the main one (`BatchRing`); only a few bytes for each
piece of work go through pipes. The processes take the pieces in turn; see `batch_sending`.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from types import TracebackType
from typing import Any, Literal, Self, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from gkd.core.errors import ConfigError, DataError
from gkd.data.batch_delivery import DecodingDelivery, Delivery, DeliveryOnCpu, DeliveryOnGpu, RawBatch
from gkd.data.batch_reader import BatchReader, Failure, Result
from gkd.data.batch_ring import BatchRing
from gkd.data.batch_sending import NUM_AHEAD, Sending, choose_cut
from gkd.data.batches import BatchPlan
from gkd.data.face_data import FaceData, is_streamed
from gkd.data.gpu_decoding import nvjpeg_decoder
from gkd.data.worker_watch import WATCH

__all__ = ["RawBatch", "TrainLoader"]

_log = logging.getLogger(__name__)
_CPU = torch.device("cpu")


class TrainLoader:
    """Iterates over the micro-batches of the steps `start_step` to `total_steps` - 1, as `RawBatch`.

    Loading processes start when an iteration does and end with it, however it ends; they only read and decode. On the
    CPU the images of a micro-batch are valid until the next one is asked for.

    Args:
        dataset: the face data.
        plan: which images make up which micro-batch.
        image_size: (H, W) of every image, in pixels.
        total_steps: one more than the last global step.
        start_step: the first global step.
        num_workers: loading processes; 0 loads in this one.
        on_bad_record: "raise" stops at a record that cannot be used; "skip" takes the next usable one instead.
        timeout_seconds: how long one micro-batch may take to arrive from a loading process.
        device: where images and labels are to be. To a CUDA device they are copied while it computes.
        decode: "cpu", or "gpu" for nvJPEG on a CUDA device, whose pixels differ slightly; see `gpu_decoding`.

    Raises:
        ConfigError: settings out of range.
    """

    def __init__(
        self,
        dataset: FaceData,
        plan: BatchPlan,
        *,
        image_size: tuple[int, int],
        total_steps: int,
        start_step: int = 0,
        num_workers: int = 0,
        on_bad_record: Literal["raise", "skip"] = "raise",
        timeout_seconds: float = 600.0,
        device: torch.device = _CPU,
        decode: Literal["cpu", "gpu"] = "cpu",
    ) -> None:
        _check_settings(num_workers, on_bad_record, start_step, total_steps, timeout_seconds, decode)
        self._dataset = dataset
        self._plan = plan
        self._image_size = (image_size[0], image_size[1])
        self._steps = (start_step, total_steps)
        self._num_workers = _usable_workers(num_workers)
        self._is_skipping = on_bad_record == "skip"
        self._timeout_seconds = timeout_seconds
        self._device = device
        self._is_decoding_on_gpu = decode == "gpu" and device.type == "cuda"
        if decode == "gpu" and not self._is_decoding_on_gpu:
            _log.warning('decode="gpu" needs a CUDA device, and this run is on %s: images are decoded there', device)
        self._running: list[Iterator[RawBatch]] = []
        self._processes: list[Any] = []

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
        tasks = self._plan.tasks(*self._steps)
        # A micro-batch has as many images in every step.
        first = list(islice(tasks, self._plan.num_micro_batches))
        if not first:
            return
        num_rows = max(len(task.sample_ids) for task in first)
        cut = choose_cut(num_rows, self._num_workers, is_streamed(self._dataset))
        ring = BatchRing(num_slots=cut.num_slots, num_rows=num_rows, image_size=self._image_size)
        delivery = self._delivery(ring)
        try:
            sending = Sending(chain(first, tasks), ring, delivery, cut)
            yield from self._deliver(self._start(ring, sending), sending, delivery, cut.num_parts)
        finally:
            delivery.close()

    def _deliver(
        self, arriving: Iterator[tuple[Result, ...]], sending: Sending, delivery: Delivery, num_parts: int
    ) -> Iterator[RawBatch]:
        # The loading processes end with the last reference to `arriving`.
        results = self._results(arriving)
        del arriving
        try:
            while parts := list(islice(results, num_parts)):
                slot_number, task = sending.under_way.popleft()
                yield delivery.deliver(slot_number, task, sum(parts, ()))
        finally:
            results.close()

    def _results(self, arriving: Iterator[tuple[Result, ...]]) -> Generator[tuple[str, ...]]:
        """Which records of each part were replaced, in order."""
        while (together := self._next(arriving)) is not None:
            for result in together:
                with self._watching():
                    pass  # raises where a process has died since: not only once there is something to wait for
                if isinstance(result, Failure):
                    raise result.error_type(result.message)
                yield result

    def _start(self, ring: BatchRing, sending: Sending) -> Iterator[tuple[Result, ...]]:
        reader = BatchReader(
            self._dataset,
            ring,
            image_size=self._image_size,
            is_skipping=self._is_skipping,
            is_leaving_encoded=self._is_decoding_on_gpu,
        )
        if not self._num_workers:
            return (reader[parts] for parts in sending)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*use of fork.*", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*suggested max number of worker.*", category=UserWarning)
            loader = DataLoader(
                cast("Dataset[tuple[Result, ...]]", reader),
                batch_size=None,
                sampler=sending,
                num_workers=self._num_workers,
                collate_fn=_as_it_is,
                timeout=self._timeout_seconds,
                worker_init_fn=_quieten_worker,
                prefetch_factor=NUM_AHEAD,
                # Forked processes start at once and share the index and the slots. They never touch CUDA.
                multiprocessing_context="fork",
                generator=torch.Generator(),  # else it draws a number from the run's own
            )
            arriving = iter(loader)
        self._processes = list(getattr(arriving, "_workers", ()))
        WATCH.install()
        return arriving

    def _next(self, arriving: Iterator[tuple[Result, ...]]) -> tuple[Result, ...] | None:
        with self._watching():
            return next(arriving, None)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Let the death of a loading process raise inside the block, as a DataError."""
        if not self._num_workers:
            yield
            return
        try:
            with WATCH.waiting():
                yield
        except RuntimeError as error:
            # One that is stopped, or waits for a disk, ignores a friendlier signal, and its end would be waited for.
            for process in self._processes:
                process.kill()
            raise _explain(error, self._timeout_seconds) from error

    def _delivery(self, ring: BatchRing) -> Delivery:
        if self._is_decoding_on_gpu:
            return DecodingDelivery(ring, self._dataset, self._device, nvjpeg_decoder(self._device))
        return DeliveryOnGpu(ring, self._device) if self._device.type == "cuda" else DeliveryOnCpu(ring)


def _as_it_is(result: Any) -> Any:
    return result


def _quieten_worker(_worker_id: int) -> None:
    # Ctrl-C in a terminal, and a launcher that ends a group, signal every process of it; the main one decides when
    # loading ends, so that it can still finish its step and save.
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # Looking through what the main process has made is a waste of time, and copies the pages that they share.
    gc.freeze()


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


def _usable_workers(num_workers: int) -> int:
    if num_workers and sys.platform != "linux":
        _log.warning("loading processes need Linux, this is %s: images are loaded in the main process", sys.platform)
        return 0
    return num_workers


def _check_settings(
    num_workers: int, on_bad_record: str, start_step: int, total_steps: int, timeout: float, decode: str
) -> None:
    if num_workers < 0:
        raise ConfigError(f"num_workers must be 0 or more, got {num_workers}")
    if on_bad_record not in ("raise", "skip"):
        raise ConfigError(f'on_bad_record must be "raise" or "skip", got {on_bad_record!r}')
    if decode not in ("cpu", "gpu"):
        raise ConfigError(f'decode must be "cpu" or "gpu", got {decode!r}')
    if not 0 <= start_step <= total_steps:
        raise ConfigError(f"start_step must lie in 0 to total_steps ({total_steps}), got {start_step}")
    if not timeout > 0:
        raise ConfigError(f"timeout_seconds must be above 0, got {timeout}")
