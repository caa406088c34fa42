"""What decides the order of the images, and the randomness that it draws on."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from gkd.data.face_data import FaceData

Int64s = npt.NDArray[np.int64]


class Order(Protocol):
    """In which order each epoch visits which images: a pure function of the epoch."""

    @property
    def images_per_epoch(self) -> int:
        """How many images an epoch visits; every epoch as many."""

    @property
    def group_size(self) -> int:
        """That many consecutive images belong together and stay on one rank and in one micro-batch."""

    def epoch(self, epoch: int) -> Int64s:
        """The sample ids of an epoch, in order: int64 (images_per_epoch,). The caller owns the array."""

    def describe(self) -> str:
        """One line for the log."""


class Sampling(Protocol):
    """What YAML configures: makes the order of a data set."""

    def order(self, dataset: FaceData, *, seed: int, batch_size: int) -> Order:
        """The order of `dataset` in batches of `batch_size`, drawn from `seed`.

        Raises:
            ConfigError: the data set, or this batch size, does not suit the sampling.
        """


def generator(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    """Random numbers that depend on the three alone; `seed` lies below 2**32. Stream 0 shuffles epochs."""
    key = np.array([seed + (stream << 32), epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
