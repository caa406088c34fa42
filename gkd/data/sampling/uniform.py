"""Every image equally often, in an order drawn anew each epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gkd.data.face_data import FaceData
from gkd.data.sampling.order import Int64s, generator
from gkd.data.sampling.passes import Portion, num_taken, portions, weighted_ranges


class Uniform:
    """Shuffles all images of an epoch. Of joined sets an epoch takes each by its weight, and shuffles all together."""

    def order(self, dataset: FaceData, *, seed: int, batch_size: int) -> UniformOrder:
        """The order of `dataset`; it does not depend on `batch_size`."""
        del batch_size
        return UniformOrder(weighted_ranges(dataset), seed)


@dataclass(frozen=True)
class UniformOrder:
    """The permutation of (seed, epoch). See `Order`.

    Args:
        parts: the sample ids of each part of the data, with its weight.
        seed: start of the random numbers.
    """

    parts: tuple[tuple[range, float], ...]
    seed: int
    group_size: int = 1

    @property
    def images_per_epoch(self) -> int:
        """The images that all parts give to an epoch."""
        return sum(num_taken(len(ids), weight) for ids, weight in self.parts)

    def epoch(self, epoch: int) -> Int64s:
        """The sample ids of an epoch, in order: int64 (images_per_epoch,)."""
        pieces = [
            self._ids(number, portion)
            for number, (ids, weight) in enumerate(self.parts)
            for portion in portions(len(ids), num_taken(len(ids), weight), epoch)
        ]
        pool = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        del pieces
        generator(self.seed, epoch).shuffle(pool)
        return pool

    def describe(self) -> str:
        """The images of an epoch and, with weights, of each part."""
        line = f"uniform sampling: {self.images_per_epoch:,} images an epoch"
        if len(self.parts) == 1 and self.parts[0][1] == 1:
            return line
        parts = (
            f"{num_taken(len(ids), weight):,} of the {len(ids):,} of set {number} (weight {weight:g})"
            for number, (ids, weight) in enumerate(self.parts, 1)
        )
        return f"{line}: {', '.join(parts)}"

    def _ids(self, number: int, portion: Portion) -> Int64s:
        ids = self.parts[number][0]
        if portion.stop - portion.start == len(ids):  # all of a pass: its own order would be lost in the shuffle
            return np.arange(ids.start, ids.stop, dtype=np.int64)
        order = generator(self.seed, portion.number, 1 + number).permutation(len(ids))
        return order[portion.start : portion.stop] + ids.start
