"""A profile as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gkd.profiling.advice import Advice
from gkd.profiling.phases import COMMUNICATION, OWN_OVERHEAD, PHASES, shares_of_bounds
from gkd.profiling.profile import Profile, spread
from gkd.profiling.setup import Setup

_NAME_WIDTH = 28
# Ranks that differ by less are as good as equal.
_LEAST_SPREAD = 0.05
_MOST_CHARACTERS = 60
# Phases that take less are left out of the table: a step without a teacher still asks whether there is one.
_LEAST_SHOWN = 1e-5
# MiB a step that may come anew from the system before it is worth a word.
_MUCH_MEMORY = 64
_KEEP_MEMORY = "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456"


def report(ranks: Sequence[Profile], setup: Setup, advice: Sequence[Advice]) -> str:
    """The tables of rank 0, the ranks beside each other, and the advice."""
    own = ranks[0]
    lines = [*_head(own, setup), "", *_table(own, setup), ""]
    lines += [*_operators(own), "", *_bound(own, setup, advice)]
    if len(ranks) > 1:
        lines += ["", *_ranks(ranks)]
    return "\n".join(lines) + "\n"


def _head(own: Profile, setup: Setup) -> Iterator[str]:
    where = setup.device_name or f"{setup.num_threads} thread(s) of a CPU"
    slower = own.profiled_seconds / own.step_seconds
    yield (
        f"a step of {setup.batch_size} images on {setup.num_ranks} rank(s), {where}: {_ms(own.step_seconds)} ms, "
        f"{setup.batch_size / own.step_seconds:.1f} images/s"
    )
    yield (
        f"mean of {own.num_steps} steps; median {_ms(own.median_seconds)} ms, slowest {_ms(own.slowest_seconds)} ms; "
        f"under the profiler {_ms(own.profiled_seconds)} ms ({slower:.2f} times as long)"
    )


def _table(own: Profile, setup: Setup) -> Iterator[str]:
    kernels = own.kernel_seconds
    yield f"{'phase':<{_NAME_WIDTH}}{'ms a step':>12}{'share':>9}" + (f"{'kernels, ms':>14}" if kernels else "")
    for phase, name in PHASES.items():
        seconds = own.seconds.get(phase, 0.0)
        if seconds >= _LEAST_SHOWN or phase in kernels:
            line = f"{name:<{_NAME_WIDTH}}{_ms(seconds):>12}{_percent(seconds / own.step_seconds):>9}"
            yield line + (f"{_ms(kernels.get(phase, 0.0)):>14}" if kernels else "")
    total = sum(own.seconds.values())
    yield f"{'all':<{_NAME_WIDTH}}{_ms(total):>12}{_percent(total / own.step_seconds):>9}"
    share = own.own_overhead
    names = ", ".join(PHASES[phase] for phase in OWN_OVERHEAD if phase in own.seconds)
    yield f"{'own overhead':<{_NAME_WIDTH}}{_ms(share * own.step_seconds):>12}{_percent(share):>9}  ({names})"


def _operators(own: Profile) -> Iterator[str]:
    what = "kernels" if own.kernel_seconds else "operators"
    yield f"longest {what} (own time under the profiler; of profiled steps all {own.num_steps}, a step)"
    for one in own.operators:
        name = one.name if len(one.name) <= _MOST_CHARACTERS else one.name[: _MOST_CHARACTERS - 1] + "…"
        per_step = 1e-6 * one.microseconds / own.num_steps
        yield f"  {_ms(per_step):>10} ms {one.num_calls / own.num_steps:>8.1f} calls  {name}"


def _bound(own: Profile, setup: Setup, advice: Sequence[Advice]) -> Iterator[str]:
    bound = own.bound()
    yield f"bound by: {bound}, {_percent(shares_of_bounds(own.seconds)[bound])} of the step"
    if not advice:
        yield "nothing to advise: no part stands out that a setting would change"
    for one in advice:
        yield f"{one.bound} ({_percent(one.share)} of the step; without it at most {one.most_gain:.2f} times as fast)"
        for action in one.actions:
            yield f"  - {action}"
    if setup.device == "cpu" and own.new_memory_mib >= _MUCH_MEMORY and not setup.keeps_memory:
        yield (
            f"memory: {own.new_memory_mib:.0f} MiB a step came anew from the system, page by page, because freed "
            "memory was given back; that is part of every phase"
        )
        yield f"  - {_KEEP_MEMORY} in the environment (glibc): the process keeps what it has freed"


def _ranks(ranks: Sequence[Profile]) -> Iterator[str]:
    own_work = [one.step_seconds - one.seconds.get(COMMUNICATION, 0.0) for one in ranks]
    yield f"{'rank':<6}{'ms a step':>12}{'without communication':>24}"
    for rank, (one, work) in enumerate(zip(ranks, own_work, strict=True)):
        yield f"{rank:<6}{_ms(one.step_seconds):>12}{_ms(work):>24}"
    differ = spread(own_work)
    line = f"the ranks' own work differs by {_percent(differ)}"
    if differ >= _LEAST_SPREAD:
        slowest = own_work.index(max(own_work))
        line += f": the others wait for rank {slowest}; look at its machine, its disk and what else runs there"
    yield line


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
