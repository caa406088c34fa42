"""The result of a profile: milliseconds of each phase of a step as it is without the profiler."""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from gkd.profiling.attribution import IDLE, Attribution, Operator
from gkd.profiling.measuring import Measured
from gkd.profiling.phases import (
    COMMUNICATION,
    COPY,
    DATA,
    LAUNCH,
    OWN_OVERHEAD,
    PHASE_OF_SCOPE,
    PHASES,
    REST,
    own_overhead,
    shares_of_bounds,
)

# What the host does while the GPU has nothing to do and that is to blame for it; all else is launching too slowly.
_BLAMED = (DATA, COPY, COMMUNICATION)


@dataclass(frozen=True)
class Profile:
    """Where the time of a step goes on one rank, in seconds a step.

    seconds: by phase, and sums to `step_seconds`, the mean of the steps without the profiler. median_seconds and
    slowest_seconds: of those. kernel_seconds: by phase, of the GPU alone. new_memory_mib: a step's memory that came
    anew from the system, page by page.
    """

    step_seconds: float
    median_seconds: float
    slowest_seconds: float
    profiled_seconds: float
    seconds: dict[str, float]
    kernel_seconds: dict[str, float]
    operators: tuple[Operator, ...]
    num_steps: int
    new_memory_mib: float

    @property
    def own_overhead(self) -> float:
        """The part of the step that is neither waiting for data nor networks, head or losses."""
        return own_overhead(self.seconds)

    def bound(self) -> str:
        """What takes the largest part of the step."""
        shares = shares_of_bounds(self.seconds)
        return max(shares, key=lambda name: shares[name])

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values, with the shares."""
        plain = asdict(self)
        plain["shares"] = {phase: value / self.step_seconds for phase, value in self.seconds.items()}
        plain["own_overhead"] = self.own_overhead
        plain["own_overhead_is"] = [PHASES[phase] for phase in OWN_OVERHEAD]
        plain["bounds"] = shares_of_bounds(self.seconds)
        plain["bound"] = self.bound()
        return plain


def make_profile(measured: Measured, attribution: Attribution) -> Profile:
    """Put together what the clock said of scopes and what the trace says of their parts."""
    steps, num_steps = measured.step_seconds, len(measured.step_seconds)
    mean = sum(steps) / num_steps
    if attribution.device:
        seconds = _of_device(mean, attribution)
    else:
        seconds = _of_scopes({name: value / num_steps for name, value in measured.scope_seconds.items()}, attribution)
    per_step = 1e-6 / attribution.num_steps
    return Profile(
        step_seconds=mean,
        median_seconds=median(steps),
        slowest_seconds=max(steps),
        profiled_seconds=measured.profiled_seconds / attribution.num_steps,
        seconds={phase: seconds[phase] for phase in PHASES if phase in seconds},
        kernel_seconds={phase: value * per_step for phase, value in attribution.kernels.items()},
        operators=attribution.operators,
        num_steps=attribution.num_steps,
        new_memory_mib=measured.num_page_faults * resource.getpagesize() / num_steps / 2**20,
    )


def _of_scopes(scope_seconds: Mapping[str, float], attribution: Attribution) -> dict[str, float]:
    """The clock's time of each scope, divided among phases as the trace divides it.

    A profiler slows each operation by as much, large or small. So its own times would make too much of what consists of
    many small ones; the clock's do not.
    """
    traced: defaultdict[str, float] = defaultdict(float)
    for (scope, _), value in attribution.host.items():
        traced[scope] += value
    found: defaultdict[str, float] = defaultdict(float)
    for scope, value in scope_seconds.items():
        if not traced[scope]:
            found[PHASE_OF_SCOPE.get(scope, REST)] += value
        for (other, phase), part in attribution.host.items():
            if other == scope and traced[scope]:
                found[phase] += value * part / traced[scope]
    return found


def _of_device(step_seconds: float, attribution: Attribution) -> dict[str, float]:
    """The GPU's time while it computes, and while it does not the host's reason.

    Kernels take as long with a profiler as without; what is longer with it is the time between them.
    """
    per_step = 1e-6 / attribution.num_steps
    found: defaultdict[str, float] = defaultdict(float)
    idle: defaultdict[str, float] = defaultdict(float)
    for (phase, host), value in attribution.device.items():
        if phase == IDLE:
            idle[host if host in _BLAMED else LAUNCH] += value * per_step
        else:
            found[phase] += value * per_step
    busy, all_idle = sum(found.values()), sum(idle.values())
    if busy > step_seconds or not all_idle:
        return {phase: value * step_seconds / busy for phase, value in found.items()}
    for phase, value in idle.items():
        found[phase] += value / all_idle * (step_seconds - busy)
    return found


def spread(step_seconds: Sequence[float]) -> float:
    """How much longer the slowest rank takes than the fastest, as a part of the fastest."""
    return max(step_seconds) / min(step_seconds) - 1.0
