"""Images that occur more than once.

N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Duplicate(NamedTuple):
    """Image `image` has the same bytes as the earlier image `first`."""

    image: int
    first: int
    is_same_label: bool


def find_duplicates(digests: npt.NDArray[np.uint64], labels: npt.NDArray[np.int64]) -> list[Duplicate]:
    """Every image that equals an earlier one, ascending.

    Besides the first image of the group, an image is compared with the group's labels so far: it has the same label
    where any earlier one has it, so that only real contradictions stand out.

    Args:
        digests: uint64 (N, 2), a hash of each image.
        labels: (N,).
    """
    return sorted(_grouped(digests, labels))


def _grouped(digests: npt.NDArray[np.uint64], labels: npt.NDArray[np.int64]) -> Iterator[Duplicate]:
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable, so equal ones keep their order
    is_equal = np.all(digests[order[1:]] == digests[order[:-1]], axis=1)
    places = np.flatnonzero(is_equal)
    group_starts = places[np.diff(places, prepend=-2) > 1]
    for start in group_starts.tolist():
        first = int(order[start])
        seen = {int(labels[first])}
        place = start
        while place < len(is_equal) and is_equal[place]:
            place += 1
            index = int(order[place])
            yield Duplicate(index, first, int(labels[index]) in seen)
            seen.add(int(labels[index]))
