"""An order that reads tar shards one after another, for data that is fetched shard by shard.

Each epoch shuffles the shards, and the images within each, and lays them end to end. That row is cut into L lanes of
equal length, which are read side by side: of a global batch of B images, B / L come from each lane, in the order of the
lanes. Ranks, micro-batches and loading processes take contiguous parts of the batch. So where L is a multiple of their
number each reads lanes of its own, hence shards of its own, apart from those that lie across the end of a lane.

How well it mixes: a batch holds images of L shards, and images of one shard meet again within n L / B batches (n images
in a shard) and not before the next epoch. Which images share a shard is fixed when the shards are made, at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError
from gkd.data.face_data import FaceData
from gkd.data.sampling.order import Int64s, generator


@runtime_checkable
class ShardedFaces(Protocol):
    """Face data that lies in shards."""

    @property
    def shard_ids(self) -> Sequence[npt.NDArray[Any]]:
        """The sample ids in each shard."""


class Shards:
    """Reads shards one after another in parallel lanes; a batch mixes images of `lanes` shards.

    Args:
        lanes: L, shards that are read side by side. It must divide the batch size, and should be a multiple of ranks x
            micro-batches x loading processes, or some of them read the same shards.

    Raises:
        ConfigError: fewer lanes than one.
    """

    def __init__(self, *, lanes: int = 8) -> None:
        if lanes < 1:
            raise ConfigError(f"lanes must be at least 1, got {lanes}")
        self._lanes = lanes

    def order(self, dataset: FaceData, *, seed: int, batch_size: int) -> ShardsOrder:
        """The order of `dataset` in batches of `batch_size`.

        Raises:
            ConfigError: the data does not lie in shards, the lanes do not divide the batch size, or there are more
                lanes than images.
        """
        if not isinstance(dataset, ShardedFaces):
            raise ConfigError(
                "sampling shards needs a data set of tar shards (made with `prepare.py shards`), got "
                f"{type(dataset).__name__}; use sampling uniform"
            )
        if batch_size % self._lanes:
            raise ConfigError(
                f"batch_size {batch_size} is no multiple of {self._lanes} lanes; lanes that divide it: "
                f"{_some_divisors(batch_size, self._lanes)}"
            )
        if self._lanes > len(dataset):
            raise ConfigError(f"{self._lanes} lanes are more than the {len(dataset)} images; make lanes smaller")
        return ShardsOrder(tuple(dataset.shard_ids), seed, batch_size, self._lanes)


@dataclass(frozen=True, eq=False)
class ShardsOrder:
    """The order of (seed, epoch, batch size, lanes), whatever the number of ranks. See `Order`.

    Args:
        shard_ids: the sample ids in each shard.
        seed: start of the random numbers.
        batch_size: B.
        lanes: L, a divisor of B.
    """

    shard_ids: tuple[npt.NDArray[Any], ...]
    seed: int
    batch_size: int
    lanes: int
    group_size: int = 1

    @property
    def images_per_epoch(self) -> int:
        """N, less what is left of N when it is dealt out to the lanes."""
        return self._num_images // self.lanes * self.lanes

    def epoch(self, epoch: int) -> Int64s:
        """The sample ids of an epoch, in order: int64 (images_per_epoch,)."""
        per_lane, per_batch = self._num_images // self.lanes, self.batch_size // self.lanes
        lanes = self._end_to_end(epoch)[: self.lanes * per_lane].reshape(self.lanes, per_lane)
        whole = per_lane // per_batch * per_batch
        batches = lanes[:, :whole].reshape(self.lanes, -1, per_batch).swapaxes(0, 1)
        return np.concatenate([batches.ravel(), lanes[:, whole:].ravel()])

    def describe(self) -> str:
        """Shards, lanes, and the images of an epoch."""
        left_out = self._num_images - self.images_per_epoch
        line = (
            f"shards sampling: {self.images_per_epoch:,} images an epoch from {len(self.shard_ids):,} shards in "
            f"{self.lanes} lanes; a batch mixes {min(self.lanes, len(self.shard_ids))} shards"
        )
        return f"{line}; {left_out} images, others each epoch, fill no lane" if left_out else line

    @property
    def _num_images(self) -> int:
        return sum(len(ids) for ids in self.shard_ids)

    def _end_to_end(self, epoch: int) -> Int64s:
        """All sample ids, shard by shard; shards and the images in each shuffled."""
        row = np.empty(self._num_images, dtype=np.int64)
        first = 0
        for number in generator(self.seed, epoch).permutation(len(self.shard_ids)).tolist():
            ids = row[first : first + len(self.shard_ids[number])]
            ids[:] = self.shard_ids[number]
            generator(self.seed, epoch, 1 + number).shuffle(ids)
            first += len(ids)
        return row


def _some_divisors(batch_size: int, lanes: int) -> str:
    """The ten divisors of the batch size that are nearest to `lanes`."""
    divisors = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
    nearest = sorted(divisors, key=lambda number: abs(number - lanes))[:10]
    return ", ".join(str(number) for number in sorted(nearest))
