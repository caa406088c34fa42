"""From a trace to the time of each phase.

Scopes say what the way forward does. On the way back a node of the autograd graph bears the number that the operation
which made it bore on the way forward, and so belongs to that one's scope. An operation that makes no node bears the
number of the next that does, so of several with one number the last to start is meant. A node without a number only
stores a gradient, straight after the node that gave it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gkd.core.errors import DataError
from gkd.profiling.phases import BACKWARD_OF_SCOPE, COMMUNICATION, COPY, PHASE_OF_SCOPE, REST
from gkd.profiling.timeline import Span, innermost, overlay, union, without
from gkd.profiling.trace import ANNOTATION, KERNELS, LAUNCHES, OPERATOR, PREFIX, STEP, Event

_NODE = "autograd::engine::evaluate_function"
_COLLECTIVE = "c10d::"
_COLLECTIVES_BESIDE = ("gloo:", "nccl:")
IDLE = "idle"


@dataclass(frozen=True)
class Operator:
    """An operator, or on a GPU a kernel: how often it ran, and how long without those that it called."""

    name: str
    num_calls: int
    microseconds: float


@dataclass(frozen=True)
class Attribution:
    """Microseconds of all `num_steps` profiled steps.

    host: by scope and phase, of the thread that trains; sums to the wall-clock. device: by the phase of what the GPU
    computes, or IDLE, and the host's phase meanwhile; sums to the wall-clock too, and is empty without a GPU. kernels:
    by phase, counting kernels that run side by side twice.
    """

    num_steps: int
    wall: float
    host: dict[tuple[str, str], float]
    device: dict[tuple[str, str], float] = field(default_factory=dict)
    kernels: dict[str, float] = field(default_factory=dict)
    operators: tuple[Operator, ...] = ()


def attribute(events: Sequence[Event], num_operators: int = 10) -> Attribution:
    """Give every moment of the profiled steps to a phase.

    Raises:
        DataError: the trace holds no step.
    """
    steps = [event for event in events if event.category == ANNOTATION and event.name == STEP]
    if not steps:
        raise DataError("the trace holds no step of a training run: profile again")
    main, windows = steps[0].thread, [Span(step.start, step.end, "") for step in steps]
    events = [event for event in events if windows[0].start <= event.start < windows[-1].end]
    scopes = _scopes(events, main)
    scope_segments = innermost([*windows, *scopes])
    nodes = _nodes(events, _scope_of_numbers(events, main, scope_segments), scopes)
    host = innermost(
        [
            *(Span(span.start, span.end, PHASE_OF_SCOPE.get(span.label, REST)) for span in [*windows, *scopes]),
            *nodes,
            *_communication(events, main),
        ]
    )
    inside = union(windows)
    host = _clip(host, inside)
    device = _device_spans(events, host)
    busy = _clip(innermost(device), inside)
    idle = [Span(span.start, span.end, IDLE) for span in without(inside, union(busy))]
    shown = [event for event in events if event.category == ("kernel" if device else OPERATOR)]
    return Attribution(
        len(steps),
        sum(span.end - span.start for span in inside),
        overlay(_clip(scope_segments, inside), host),
        overlay(sorted([*busy, *idle], key=lambda span: span.start), host) if device else {},
        _sums(device),
        _top(shown, num_operators),
    )


def _scopes(events: Iterable[Event], main: str) -> list[Span]:
    return [
        Span(event.start, event.end, event.name.removeprefix(PREFIX))
        for event in events
        if event.category == ANNOTATION
        and event.thread == main
        and event.name.startswith(PREFIX)
        and event.name != STEP
    ]


def _top_level_nodes(events: Iterable[Event]) -> list[Event]:
    """The nodes of the autograd graph that were run, but for those inside of another's run."""
    found: list[Event] = []
    ends: dict[str, float] = {}
    for event in events:
        if event.category == OPERATOR and event.name.startswith(_NODE) and event.start >= ends.get(event.thread, 0.0):
            ends[event.thread] = event.end
            found.append(event)
    return found


def _scope_of_numbers(events: Sequence[Event], main: str, scopes: Sequence[Span]) -> dict[int, str]:
    """The scope in which the node of each number was made."""
    running = union(Span(node.start, node.end, "") for node in _top_level_nodes(events) if node.thread == main)
    found: dict[int, str] = {}
    for event in events:
        is_numbered = event.category == OPERATOR and event.thread == main and event.sequence is not None
        if is_numbered and _at(running, event.start) is None:  # what a node itself calls bears its number too
            assert event.sequence is not None
            found[event.sequence] = (_at(scopes, event.start) or Span(0, 0, "")).label
    return found


def _nodes(events: Sequence[Event], scope_of: dict[int, str], scopes: Sequence[Span]) -> list[Span]:
    """The way back as spans without gaps: what lies between two nodes belongs to the one before."""
    nodes, found = _top_level_nodes(events), []
    starts = [node.start for node in nodes]
    for backward in (span for span in scopes if span.label == "backward"):
        own = nodes[bisect_right(starts, backward.start) : bisect_right(starts, backward.end)]
        phases = [BACKWARD_OF_SCOPE.get(_scope_of(node, scope_of), "") for node in own]
        bounds = [backward.start, *(node.start for node in own[1:]), backward.end]
        phase = next(filter(None, phases), REST)
        for number, own_phase in enumerate(phases):
            phase = own_phase or phase
            found.append(Span(bounds[number], bounds[number + 1], phase))
    return found


def _scope_of(node: Event, scope_of: dict[int, str]) -> str:
    return "" if node.sequence is None else scope_of.get(node.sequence, "")


def _communication(events: Sequence[Event], main: str) -> list[Span]:
    """Collectives that the thread itself runs, and those that it waits for while others run them."""
    own = [event for event in events if event.category == OPERATOR]
    calls = [Span(each.start, each.end, COMMUNICATION) for each in own if each.name.startswith(_COLLECTIVE)]
    beside = [
        Span(event.start, event.end, "")
        for event in events
        if event.category == ANNOTATION and event.thread != main and event.name.startswith(_COLLECTIVES_BESIDE)
    ]
    at_work = union(Span(each.start, each.end, "") for each in own)
    waits = [Span(span.start, span.end, COMMUNICATION) for span in without(union(beside), at_work)]
    return calls + waits


def _device_spans(events: Sequence[Event], host: Sequence[Span]) -> list[Span]:
    """What the GPU computes, each kernel with the phase in which the host launched it."""
    launched = {event.correlation: event.start for event in events if event.category in LAUNCHES}
    found = []
    for event in events:
        if event.category not in KERNELS:
            continue
        at = _at(host, launched.get(event.correlation, event.start))
        phase = REST if at is None else at.label
        if "nccl" in event.name.lower():
            phase = COMMUNICATION
        elif "HtoD" in event.name:
            phase = COPY
        found.append(Span(event.start, event.end, phase))
    return found


def _top(events: Sequence[Event], count: int) -> tuple[Operator, ...]:
    """The events whose own time is longest, by name; nodes count as part of what they call."""
    own: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    stacks: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        stack = stacks[event.thread]
        while stack and stack[-1].end <= event.start:
            stack.pop()
        if stack:
            own[stack[-1].name] -= event.end - event.start
        stack.append(event)
        own[event.name] += event.end - event.start
        calls[event.name] += 1
    longest = sorted(own, key=lambda name: -own[name])[:count]
    return tuple(Operator(name, calls[name], own[name]) for name in longest)


def _sums(spans: Iterable[Span]) -> dict[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for span in spans:
        found[span.label] += span.end - span.start
    return dict(found)


def _at(spans: Sequence[Span], time: float) -> Span | None:
    """The one of `spans`, in order and without overlap, that covers `time`."""
    place = bisect_right(spans, time, key=lambda span: span.start) - 1
    return spans[place] if place >= 0 and time < spans[place].end else None


def _clip(spans: Sequence[Span], inside: Sequence[Span]) -> list[Span]:
    """The parts of `spans` that lie in `inside`; both in order and each without overlap."""
    found = []
    for window in inside:
        first = max(0, bisect_right(spans, window.start, key=lambda span: span.start) - 1)
        for span in spans[first:]:
            if span.start >= window.end:
                break
            start, end = max(span.start, window.start), min(span.end, window.end)
            if start < end:
                found.append(Span(start, end, span.label))
    return found
