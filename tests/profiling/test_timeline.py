"""Spans of time against a reference that looks at every moment."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from gkd.profiling.timeline import Span, innermost, overlay, union, without


def random_spans(seed: int, count: int = 12) -> list[Span]:
    source = random.Random(seed)
    spans = []
    for number in range(count):
        start = source.randrange(40)
        spans.append(Span(start, start + 1 + source.randrange(15), str(number % 4)))
    return spans


def label_at(spans: list[Span], moment: float) -> str | None:
    """Of the spans at a moment, the last started; of those the shortest, and the last given."""
    there = [(span.start, -span.end, place, span.label) for place, span in enumerate(spans)]
    there = [one for one, span in zip(there, spans, strict=True) if span.start <= moment < span.end]
    return max(there)[3] if there else None


@pytest.mark.parametrize("seed", range(20))
def test_the_innermost_span_is_the_last_started(seed):
    spans = random_spans(seed)
    found = innermost(spans)
    for moment in range(60):
        assert label_at(found, moment + 0.5) == label_at(spans, moment + 0.5)
    assert all(left.end <= right.start for left, right in pairwise(found))


@pytest.mark.parametrize("seed", range(20))
def test_union_and_without_against_every_moment(seed):
    left, right = random_spans(seed), random_spans(seed + 100, 5)
    rest = without(union(left), union(right))
    for moment in range(60):
        covered = label_at(left, moment + 0.5) is not None and label_at(right, moment + 0.5) is None
        assert (label_at(rest, moment + 0.5) is not None) == covered


@pytest.mark.parametrize("seed", range(20))
def test_overlay_counts_every_moment_once(seed):
    left, right = innermost(random_spans(seed)), innermost(random_spans(seed + 100))
    expected: dict[tuple[str, str], float] = {}
    for moment in range(60):
        pair = label_at(left, moment + 0.5), label_at(right, moment + 0.5)
        if None not in pair:
            expected[pair] = expected.get(pair, 0.0) + 1
    assert overlay(left, right) == expected


def test_nothing_gives_nothing():
    assert innermost([]) == union([]) == without([], []) == []
    assert overlay([], []) == {}
