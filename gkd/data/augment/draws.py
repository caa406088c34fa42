"""The random numbers of one step of the list, for some images."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gkd.core import seed as randomness

Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

# Above the numbers of a checksum, so that no step shares the stream 0 of mirroring.
_FIRST_STREAM = 1 << 32


@dataclass(frozen=True)
class Draws:
    """Numbers that depend on (seed, epoch, sample id, place, name) and on what they are for.

    Args:
        sample_ids: int64 (M,).
        seed: of the run.
        epoch: the number of the epoch.
        place: of the step in the list, from 0.
        name: of the step.
    """

    sample_ids: Int64s
    seed: int
    epoch: int
    place: int
    name: str

    def uniform(self, what: str) -> Float64s:
        """A number in [0, 1) for each image, (M,); each `what` has numbers of its own."""
        stream = _FIRST_STREAM + zlib.crc32(f"{self.place} {self.name} {what}".encode())
        return randomness.uniform(self.sample_ids, self.seed, self.epoch, stream)

    def around_zero(self, what: str) -> Float64s:
        """A number in [-1, 1) for each image, (M,)."""
        return 2 * self.uniform(what) - 1

    def whole(self, what: str, count: int | Int64s) -> Int64s:
        """A whole number in 0 ... count - 1 for each image, (M,); `count` may differ by image."""
        return np.floor(self.uniform(what) * count).astype(np.int64)

    def of(self, rows: Int64s) -> Draws:
        """The same numbers for the images at `rows` alone."""
        return replace(self, sample_ids=self.sample_ids[rows])
