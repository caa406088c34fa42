"""The images of each identity, cut into groups of k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.data.sampling.order import Int64s

_IMAGES_AT_ONCE = 1 << 20


class GroupCutter:
    """Cuts each identity's images into groups of k; n mod k of its n images, others each time, are in no group.

    It keeps 4 bytes an image and 20 bytes an identity. There may be up to 2**32 images and labels up to 2**32.

    Args:
        labels: int64 (N,), the label of every image of the data set.
        ranges: the sample ids to cut up.
        size: k, images in a group.

    Attributes:
        owners: the label of each group of a cut, (G,); the same in every cut.
        num_images: images of identities that have at least k.
    """

    def __init__(self, labels: Int64s, ranges: Sequence[range], size: int) -> None:
        ids, identities, counts = _sorted_by_identity(labels, ranges)
        is_large = counts >= size
        self._ids = ids if is_large.all() else ids[np.repeat(is_large, counts)]
        self._counts = counts[is_large]
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])
        self._size = size
        self.num_images = len(self._ids)
        self.owners = np.repeat(identities[is_large], self._counts // size)

    def cut(self, random: np.random.Generator) -> npt.NDArray[Any]:
        """Sample ids (G, k), the groups of one identity following each other, in the order of `owners`."""
        groups = np.empty((len(self.owners), self._size), dtype=self._ids.dtype)
        first = 0
        for start, stop in self._chunks():
            chunk = self._cut_some(start, stop, random)
            groups[first : first + len(chunk)] = chunk
            first += len(chunk)
        return groups

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Runs of whole identities, of about `_IMAGES_AT_ONCE` images each."""
        marks = np.arange(0, self.num_images, _IMAGES_AT_ONCE)
        borders = np.unique([*np.searchsorted(self._starts, marks), len(self._counts)])
        yield from zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)

    def _cut_some(self, start: int, stop: int, random: np.random.Generator) -> npt.NDArray[Any]:
        first, last = self._starts[start], self._starts[stop]
        counts = self._counts[start:stop]
        ids = self._ids[first:last][_shuffle_within(counts, random)]
        place = np.arange(len(ids)) - np.repeat(self._starts[start:stop] - first, counts)
        in_groups: npt.NDArray[Any] = ids[place < np.repeat(counts - counts % self._size, counts)]
        return in_groups.reshape(-1, self._size)


def _shuffle_within(counts: Int64s, random: np.random.Generator) -> npt.NDArray[np.uint64]:
    """Places 0 … N-1, shuffled within each run of counts[i] places.

    One sort does all runs: of 64-bit numbers made of the run, then random bits, then the place. No two are equal, so
    every machine sorts them alike. At least 20 bits are random in runs of up to a million places.
    """
    num_places = int(counts.sum())
    run_bits, place_bits = (len(counts) - 1).bit_length(), (num_places - 1).bit_length()
    mask = np.uint64((1 << place_bits) - 1)
    keys = np.asarray(random.bit_generator.random_raw(num_places), dtype=np.uint64)
    keys >>= np.uint64(run_bits)
    keys &= ~mask
    keys |= np.arange(num_places, dtype=np.uint64)
    if run_bits:
        keys |= np.repeat(np.arange(len(counts), dtype=np.uint64), counts) << np.uint64(64 - run_bits)
    keys.sort()
    return keys & mask


def _sorted_by_identity(labels: Int64s, ranges: Sequence[range]) -> tuple[npt.NDArray[Any], Int64s, Int64s]:
    """The sample ids by ascending label, then id; the labels that occur; how many images each has."""
    keys = np.empty(sum(len(ids) for ids in ranges), dtype=np.uint64)
    first = 0
    for ids in ranges:
        for start in range(ids.start, ids.stop, _IMAGES_AT_ONCE):  # by pieces, for the sake of memory
            stop = min(start + _IMAGES_AT_ONCE, ids.stop)
            piece = labels[start:stop].astype(np.uint64) << np.uint64(32)
            keys[first : first + stop - start] = piece | np.arange(start, stop, dtype=np.uint64)
            first += stop - start
    keys.sort()
    is_narrow = len(labels) <= np.iinfo(np.int32).max
    sample_ids = (keys & np.uint64(0xFFFFFFFF)).astype(np.int32 if is_narrow else np.int64)
    keys >>= np.uint64(32)
    starts = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
    counts = np.diff(np.concatenate([starts, [len(keys)]]))
    return sample_ids, keys[starts].astype(np.int64), counts
