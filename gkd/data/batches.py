"""Which images make up which micro-batch on which rank: pure functions of the settings, without any loading.

Global batch g of an epoch is order[gB : (g+1)B], where the `Order` says in which order the epoch visits the images. It
is cut into micro-batches, and each of these over the ranks, into contiguous parts whose sizes differ by at most one
image (by one group, where the order has groups), the larger first. So neither number changes the global batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError

if TYPE_CHECKING:
    from gkd.data.sampling.order import Order

Int64s = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)
_MAX_TOLD = 20


@dataclass(frozen=True)
class Task:
    """One rank's share of a micro-batch, by sample ids: int64 (N,), in the order of the batch."""

    step: int
    epoch: int
    micro_batch: int
    sample_ids: Int64s


@dataclass(frozen=True)
class BatchPlan:
    """The batches of a run and this rank's part of them.

    Tasks are cut between groups, never within one. The last images of an epoch, which fill no batch, are dropped on
    purpose; see `left_out`. While tasks are taken one epoch's order is in memory, at 4 bytes an image (8 above 2**31
    images).

    Args:
        order: in which order each epoch visits the images.
        batch_size: images in a global batch, over all ranks and micro-batches.
        num_micro_batches: into how many parts each global batch is cut.
        rank: this process's number.
        world_size: the number of processes.

    Raises:
        ConfigError: a batch larger than an epoch, one that cuts a group, or one that leaves a rank without an image in
            some micro-batch.
    """

    order: Order
    _: KW_ONLY
    batch_size: int
    num_micro_batches: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_micro_batches", "world_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank {self.rank} is not one of {self.world_size} processes")
        num_images, group_size = self.order.images_per_epoch, self.order.group_size
        if self.batch_size > num_images:
            raise ConfigError(
                f"batch_size {self.batch_size} is larger than the data set of {num_images} images (as many as an "
                "epoch takes); make it smaller"
            )
        if self.batch_size % group_size:
            raise ConfigError(
                f"batch_size {self.batch_size} is no multiple of {group_size}, the number of images that this "
                "sampling keeps together"
            )
        least = self.num_micro_batches * self.world_size * group_size
        if self.batch_size < least:
            thing = "an image" if group_size == 1 else f"a group of {group_size} images"
            raise ConfigError(
                f"batch_size {self.batch_size} in {self.num_micro_batches} micro-batches leaves some of "
                f"{self.world_size} processes without {thing}; make it at least {least}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.order.images_per_epoch // self.batch_size

    def tasks(self, start_step: int, total_steps: int) -> Iterator[Task]:
        """This rank's tasks of the steps `start_step` to `total_steps` - 1, in order."""
        epoch, order = -1, np.empty(0, dtype=np.int32)
        for step in range(start_step, total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                del order  # two epochs at once would double the memory
                order = _narrowed(self.order.epoch(epoch))
                self._tell_left_out(epoch, order)
            first = step % self.steps_per_epoch * self.batch_size
            batch = order[first : first + self.batch_size].astype(np.int64)
            for micro_batch in range(self.num_micro_batches):
                yield Task(step, epoch, micro_batch, self._share_of(batch, micro_batch))

    def left_out(self, epoch: int) -> Int64s:
        """The sample ids at the end of an epoch's order that fill no batch; works the whole order out anew."""
        return self.order.epoch(epoch)[self.steps_per_epoch * self.batch_size :].copy()

    def _tell_left_out(self, epoch: int, order: npt.NDArray[Any]) -> None:
        rest = order[self.steps_per_epoch * self.batch_size :]
        if self.rank == 0 and len(rest):
            told = ", ".join(str(sample_id) for sample_id in rest[:_MAX_TOLD])
            more = " …" if len(rest) > _MAX_TOLD else ""
            _log.info("epoch %d leaves out %d images that fill no batch: sample ids %s%s", epoch, len(rest), told, more)

    def _share_of(self, batch: Int64s, micro_batch: int) -> Int64s:
        groups = batch.reshape(-1, self.order.group_size)
        part = groups[share(len(groups), self.num_micro_batches, micro_batch)]
        return part[share(len(part), self.world_size, self.rank)].ravel()


def share(num_items: int, num_parts: int, part: int) -> slice:
    """Part `part` of `num_items` in contiguous parts whose sizes differ by at most one, the larger first."""
    size, num_larger = divmod(num_items, num_parts)
    start = part * size + min(part, num_larger)
    return slice(start, start + size + (part < num_larger))


def _narrowed(ids: Int64s) -> npt.NDArray[Any]:
    return ids.astype(np.int32) if ids.max() <= np.iinfo(np.int32).max else ids
