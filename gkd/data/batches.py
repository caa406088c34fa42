"""Which images make up which micro-batch on which rank: pure functions of the settings, without any loading.

Global batch g of an epoch is permutation[gB : (g+1)B]. It is cut into micro-batches, and each of these over the ranks,
into contiguous parts whose sizes differ by at most one, the larger first. So neither number changes the global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gkd.core import seed as randomness
from gkd.core.errors import ConfigError

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """One rank's share of a micro-batch, by sample ids."""

    step: int
    epoch: int
    micro_batch: int
    sample_ids: Int64s


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The order of a run. `batch_size` is global; the last incomplete batch of an epoch is dropped.

    Raises:
        ConfigError: a batch larger than the set, or one that leaves a rank without an image in some micro-batch.
    """

    num_images: int
    batch_size: int
    seed: int
    num_micro_batches: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_micro_batches", "world_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} is not one of {self.world_size} processes")
        if self.batch_size > self.num_images:
            raise ConfigError(f"batch_size {self.batch_size} is larger than the data set of {self.num_images} images")
        least = self.num_micro_batches * self.world_size
        if self.batch_size < least:
            raise ConfigError(
                f"batch_size {self.batch_size} in {self.num_micro_batches} micro-batches leaves some of "
                f"{self.world_size} processes without an image; make it at least {least}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the set."""
        return self.num_images // self.batch_size

    def tasks(self, start_step: int, total_steps: int) -> Iterator[Task]:
        """This rank's tasks of the steps `start_step` to `total_steps` - 1, in order."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(start_step, total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = randomness.permutation(self.num_images, self.seed, epoch)
            first = step % self.steps_per_epoch * self.batch_size
            batch = order[first : first + self.batch_size]
            for micro_batch in range(self.num_micro_batches):
                part = batch[share(len(batch), self.num_micro_batches, micro_batch)]
                yield Task(step, epoch, micro_batch, part[share(len(part), self.world_size, self.rank)].copy())


def share(num_items: int, num_parts: int, part: int) -> slice:
    """Part `part` of `num_items` in contiguous parts whose sizes differ by at most one, the larger first."""
    size, num_larger = divmod(num_items, num_parts)
    start = part * size + min(part, num_larger)
    return slice(start, start + size + (part < num_larger))
