"""Measures the steps of a run from where it asks for its data: first by the clock, then under the profiler."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gkd.core.errors import ConfigError
from gkd.core.scopes import measured
from gkd.data.loader import RawBatch, TrainLoader
from gkd.profiling.trace import PREFIX, STEP


class ProfileDone(Exception):  # noqa: N818 - no error: it ends a run that has been measured
    """Ends the training loop once all steps are measured."""


@dataclass(frozen=True)
class StepPlan:
    """Steps before measuring, and steps that are measured, once by the clock and once under the profiler.

    Raises:
        ConfigError: fewer than no steps, or nothing to measure.
    """

    warmup: int = 5
    steps: int = 30

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"--steps must be at least 1, got {self.steps}")
        if self.warmup < 0:
            raise ConfigError(f"--warmup must be 0 or more, got {self.warmup}")

    @property
    def total(self) -> int:
        """Steps that the run takes: the profiler gets one to settle."""
        return self.warmup + 2 * self.steps + 1


@dataclass
class Measured:
    """What the clock said.

    step_seconds: of each step. scope_seconds: of all steps by scope, without what other scopes inside took; under ""
    what is in none. profiled_seconds: of all steps under the profiler. num_page_faults: pages of memory that came anew
    from the system in the timed steps.
    """

    step_seconds: list[float] = field(default_factory=list)
    scope_seconds: dict[str, float] = field(default_factory=dict)
    profiled_seconds: float = 0.0
    num_page_faults: int = 0


class ScopeClock:
    """Adds up the time of scopes, each without those inside of it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._names = [""]
        self.last = time.perf_counter()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time the block as the scope `name`."""
        self.tick()
        self._names.append(name)
        try:
            yield
        finally:
            self.tick()
            self._names.pop()

    def tick(self) -> float:
        """Give the time since the last change of scope to the scope that is open; returns the clock's time."""
        now = time.perf_counter()
        self.seconds[self._names[-1]] += now - self.last
        self.last = now
        return now


class StepMeter:
    """A loader that measures what is done with its micro-batches, and ends the run when it knows enough.

    A step goes from one request for its first micro-batch to the next such request. So all that a run does is in some
    step, and what it measures needs no change.

    Args:
        loader: of the run.
        plan: how many steps.
        micro_batches: of a step.
        device: where the run computes; its clock is read when a CUDA device has done its work.
        trace: where the profiler's trace goes, gzipped.
    """

    def __init__(
        self, loader: TrainLoader, plan: StepPlan, micro_batches: int, device: torch.device, trace: Path
    ) -> None:
        self.loader = loader
        self.plan = plan
        self.micro_batches = micro_batches
        self.device = device
        self.trace = trace
        self.measured = Measured()
        self._num_asked = 0
        self._clock: ScopeClock | None = None
        self._profiler: Any = None
        self._started = 0.0
        self._scope: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext()
        self._open = ExitStack()
        self._step_mark = ExitStack()

    def __enter__(self) -> StepMeter:
        self.loader.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._step_mark.close()
        self._open.close()
        if self._profiler is not None:  # the run failed in between
            self._profiler.stop()
        self.loader.__exit__(*error)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[RawBatch]:
        """Hand out the loader's micro-batches.

        Raises:
            ProfileDone: all steps are measured.
        """
        batches = iter(self.loader)
        while True:
            if self._num_asked % self.micro_batches == 0:
                self._next_step(self._num_asked // self.micro_batches)
            self._num_asked += 1
            with self._scope("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _next_step(self, number: int) -> None:
        """Between two steps: end what is over and begin what is due."""
        plan = self.plan
        self._step_mark.close()
        if plan.warmup < number <= plan.warmup + plan.steps:
            self._end_timed_step(is_last=number == plan.warmup + plan.steps)
        if number == plan.warmup:
            self._start_clock()
        elif number == plan.warmup + plan.steps:
            self._start_profiler()
        elif number == plan.total:
            self._stop_profiler()
        if plan.total - plan.steps <= number < plan.total:
            if number == plan.total - plan.steps:
                self._wait()
                self._started = time.perf_counter()
            self._step_mark.enter_context(record_function(STEP))

    def _start_clock(self) -> None:
        self._wait()
        self._clock = ScopeClock()
        self._started = self._clock.last
        self._use(self._clock.timed)
        self.measured.num_page_faults = -_num_page_faults()

    def _end_timed_step(self, is_last: bool) -> None:
        assert self._clock is not None
        if is_last:
            self._wait()
        now = self._clock.tick()
        if is_last:
            self._open.close()
            self.measured.scope_seconds = dict(self._clock.seconds)
            self.measured.num_page_faults += _num_page_faults()
        self.measured.step_seconds.append(now - self._started)
        self._started = now

    def _start_profiler(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities)
        self._profiler.start()
        self._use(lambda name: record_function(PREFIX + name))

    def _stop_profiler(self) -> None:
        self._wait()
        self.measured.profiled_seconds = time.perf_counter() - self._started
        self._open.close()
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        profiler.export_chrome_trace(str(self.trace))
        raise ProfileDone

    def _use(self, by: Callable[[str], AbstractContextManager[object]]) -> None:
        self._scope = by
        self._open.enter_context(measured(by))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _num_page_faults() -> int:
    """Of this process since its start, but for those that waited for a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
