"""How long the device works on what is timed, without waiting for it until the time is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepTimer:
    """Adds up the time between start and end of what runs inside `timed()`.

    On a CPU by the clock. On CUDA by events on the current stream, which are read only by `take_seconds`: what the
    stream waits for in between counts too.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._num_used = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the block; where it raises, not."""
        if self._is_cuda:
            start, end = self._next_events()
            start.record()
            yield
            end.record()
            self._num_used += 1
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def take_seconds(self) -> float:
        """The seconds since last asked. On CUDA this waits until the timed work is done."""
        if self._num_used:
            self._events[self._num_used - 1][1].synchronize()
        pairs = self._events[: self._num_used]
        seconds: float = self._seconds + sum(start.elapsed_time(end) for start, end in pairs) / 1000
        self._seconds, self._num_used = 0.0, 0
        return seconds

    def _next_events(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """A pair that is free; pairs are used again once their times were taken."""
        if self._num_used == len(self._events):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._events.append((start, end))
        return self._events[self._num_used]
