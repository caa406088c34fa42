"""Spans of time that lie inside of each other, and how long each is the innermost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` to `end`, in any one unit, with a label."""

    start: float
    end: float
    label: str


def innermost(spans: Sequence[Span]) -> list[Span]:
    """Spans that do not overlap and cover the same time, each with the label of the last started one there.

    Of spans that start together the shorter is the inner one.
    """
    order = sorted(range(len(spans)), key=lambda index: (spans[index].start, -spans[index].end))
    times = sorted({time for span in spans for time in (span.start, span.end)})
    found: list[Span] = []
    active: list[Span] = []
    place = 0
    for start, end in pairwise(times):
        while place < len(order) and spans[order[place]].start <= start:
            active.append(spans[order[place]])
            place += 1
        active = [span for span in active if span.end > start]
        if not active:
            continue
        label = active[-1].label
        if found and found[-1].end == start and found[-1].label == label:
            found[-1] = Span(found[-1].start, end, label)
        else:
            found.append(Span(start, end, label))
    return found


def union(spans: Iterable[Span]) -> list[Span]:
    """The time that any of `spans` covers, in order, without labels."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start):
        if found and span.start <= found[-1].end:
            found[-1] = Span(found[-1].start, max(found[-1].end, span.end), "")
        else:
            found.append(Span(span.start, span.end, ""))
    return found


def without(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The time of `spans` that `others` do not cover; both in order and each without overlap."""
    found: list[Span] = []
    place = 0
    for span in spans:
        start = span.start
        while place < len(others) and others[place].end <= start:
            place += 1
        index = place
        while index < len(others) and others[index].start < span.end:
            if others[index].start > start:
                found.append(Span(start, others[index].start, span.label))
            start = max(start, others[index].end)
            index += 1
        if start < span.end:
            found.append(Span(start, span.end, span.label))
    return found


def overlay(left: Sequence[Span], right: Sequence[Span]) -> dict[tuple[str, str], float]:
    """How long each pair of labels holds together; both in order and each without overlap."""
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    i = j = 0
    while i < len(left) and j < len(right):
        common = min(left[i].end, right[j].end) - max(left[i].start, right[j].start)
        if common > 0:
            found[left[i].label, right[j].label] += common
        if left[i].end <= right[j].end:
            i += 1
        else:
            j += 1
    return dict(found)
