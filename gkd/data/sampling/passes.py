"""Weights: how many passes over a part of the data an epoch makes.

Every part is an endless sequence of passes, each a permutation of its own. An epoch takes the next c items of it, the
same c every epoch: c = weight x n, rounded once to the nearest whole number (half up). So the weight in effect is
c / n, and after any number of epochs all items have been taken equally often, give or take one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from gkd.data.face_data import FaceData


@runtime_checkable
class WeightedFaces(Protocol):
    """Face data whose parts are to be visited unequally often."""

    @property
    def weighted_ranges(self) -> tuple[tuple[range, float], ...]:
        """The sample ids of each part, with its weight."""


@dataclass(frozen=True)
class Portion:
    """The items `start` to `stop` - 1 of pass `number`."""

    number: int
    start: int
    stop: int


def weighted_ranges(dataset: FaceData) -> tuple[tuple[range, float], ...]:
    """The sample ids of each part of a data set, with its weight; plain face data is one part of weight 1."""
    if isinstance(dataset, WeightedFaces):
        return dataset.weighted_ranges
    return ((range(len(dataset)), 1.0),)


def num_taken(num_items: int, weight: float) -> int:
    """How many of `num_items` an epoch takes."""
    return math.floor(weight * num_items + 0.5)


def portions(num_items: int, num_per_epoch: int, epoch: int) -> Iterator[Portion]:
    """The parts of passes over `num_items` that make up epoch `epoch`."""
    if not num_per_epoch:
        return
    begin, end = epoch * num_per_epoch, (epoch + 1) * num_per_epoch
    for number in range(begin // num_items, -(-end // num_items)):
        first = number * num_items
        yield Portion(number, max(begin - first, 0), min(end - first, num_items))
