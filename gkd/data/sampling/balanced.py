"""Batches of m identities with k images each."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError
from gkd.data.face_data import FaceData
from gkd.data.sampling.groups import GroupCutter
from gkd.data.sampling.order import Int64s, generator
from gkd.data.sampling.passes import num_taken, portions, weighted_ranges
from gkd.data.sampling.spread import spread

_log = logging.getLogger(__name__)


class Balanced:
    """Batches of batch_size / k identities with k = `images_per_identity` images each, which stay on one rank.

    Each epoch, the images of each identity are shuffled and cut into groups of k. The n mod k images that are left over
    sit out this epoch; others do in the next. Identities with fewer than k images never take part; how many, is logged.
    No image comes twice in an epoch, and a batch holds no identity twice where that is possible.

    Of joined sets, those of one weight are cut up together, and an epoch takes that weight of their groups, not of
    their images: an image comes twice only in another group.

    Args:
        images_per_identity: k, at least 1; it has to divide the batch size.

    Raises:
        ConfigError: k below 1.
    """

    def __init__(self, *, images_per_identity: int = 4) -> None:
        if images_per_identity < 1:
            raise ConfigError(f"images_per_identity must be at least 1, got {images_per_identity}")
        self.images_per_identity = images_per_identity

    def order(self, dataset: FaceData, *, seed: int, batch_size: int) -> BalancedOrder:
        """The order of `dataset`.

        Raises:
            ConfigError: `batch_size` is no multiple of k, or the data has too few groups for one batch.
        """
        size = self.images_per_identity
        if batch_size % size:
            raise _does_not_divide(size, batch_size)
        order = BalancedOrder(dataset, seed=seed, batch_size=batch_size, group_size=size)
        if order.images_per_epoch < batch_size:
            raise ConfigError(
                f"balanced sampling: a batch of {batch_size} takes {batch_size // size} groups of {size} images of one "
                f"identity, but the data gives {order.num_groups}; make batch_size or images_per_identity smaller"
            )
        for warning in order.warnings():
            _log.warning("balanced sampling: %s", warning)
        return order


@dataclass(frozen=True)
class _Part:
    """Data of one weight: an endless sequence of passes over its groups, of which an epoch takes so many."""

    weight: float
    cutter: GroupCutter
    num_per_epoch: int


class BalancedOrder:
    """The order that `Balanced` makes. See `Order`.

    Attributes:
        group_size: k.
        images_per_epoch: k images of each group that an epoch takes.
        num_groups: the groups that an epoch takes.
    """

    def __init__(self, dataset: FaceData, *, seed: int, batch_size: int, group_size: int) -> None:
        self._seed = seed
        self._groups_per_batch = batch_size // group_size
        self.group_size = group_size
        self._parts = _cut_up(dataset, group_size)
        self.num_groups = sum(part.num_per_epoch for part in self._parts)
        self.images_per_epoch = self.num_groups * group_size
        self._num_images, self._num_identities = len(dataset), dataset.num_identities

    def epoch(self, epoch: int) -> Int64s:
        """The sample ids of an epoch, in order: int64 (images_per_epoch,)."""
        taken = [piece for number in range(len(self._parts)) for piece in self._take(number, epoch)]
        owners = np.concatenate([labels for _, labels in taken])
        order = spread(owners, self._groups_per_batch, generator(self._seed, epoch))
        del owners
        groups = taken[0][0] if len(taken) == 1 else np.concatenate([ids for ids, _ in taken])
        del taken
        groups = groups[order]
        del order
        return groups.ravel().astype(np.int64)

    def describe(self) -> str:
        """The make-up of a batch and of an epoch, and what is left out."""
        size = self.group_size
        lines = [
            f"balanced sampling: batches of {self._groups_per_batch:,} identities x {size} images",
            f"{self.num_groups:,} groups ({self.images_per_epoch:,} images) an epoch",
        ]
        if len(self._parts) > 1 or self._parts[0].weight != 1:
            lines += [
                f"{part.num_per_epoch:,} of the {len(part.cutter.owners):,} of weight {part.weight:g}"
                for part in self._parts
            ]
        spare = sum(part.cutter.num_images - len(part.cutter.owners) * size for part in self._parts)
        lines.append(f"{spare:,} images sit out a pass in turn, as n mod {size} of an identity's are left over")
        return "; ".join([*lines, *self.warnings()])

    def warnings(self) -> list[str]:
        """What a user should know: data that never takes part, and batches that cannot but hold an identity twice."""
        return [*self._absences(), *self._doubles()]

    def _absences(self) -> Iterator[str]:
        for part in self._parts:
            if not part.num_per_epoch:
                yield f"the data of weight {part.weight:g} gives no group at all"
        taking_part = len(np.unique(np.concatenate([part.cutter.owners for part in self._parts])))
        num_out = self._num_images - sum(part.cutter.num_images for part in self._parts)
        if num_out or taking_part < self._num_identities:
            of_what = "images" if len(self._parts) == 1 else "images of one weight"
            yield (
                f"{self._num_identities - taking_part:,} of {self._num_identities:,} identities and {num_out:,} of "
                f"{self._num_images:,} images never take part, as an identity needs {self.group_size} {of_what}"
            )

    def _doubles(self) -> Iterator[str]:
        num_batches, num_dropped = divmod(self.num_groups, self._groups_per_batch)
        counts = np.zeros(self._num_identities)
        for part in self._parts:
            if part.num_per_epoch:
                owners = part.cutter.owners
                counts += np.bincount(owners, minlength=len(counts)) * (part.num_per_epoch / len(owners))
        num_doubles = math.floor(np.maximum(counts - num_batches, 0).sum()) - num_dropped
        if num_doubles > 0:
            yield (
                f"about {num_doubles:,} of {self.num_groups:,} groups share a batch with another of their identity, as "
                f"there are more of it than the {num_batches:,} batches of an epoch"
            )

    def _take(self, number: int, epoch: int) -> Iterator[tuple[npt.NDArray[Any], Int64s]]:
        """The groups of part `number` in an epoch, with their labels, a pass at a time."""
        part = self._parts[number]
        owners = part.cutter.owners
        for portion in portions(len(owners), part.num_per_epoch, epoch):
            random = generator(self._seed, portion.number, 1 + number)
            groups = part.cutter.cut(random)
            if portion.stop - portion.start == len(owners):
                yield groups, owners
            else:
                chosen = random.permutation(len(owners))[portion.start : portion.stop]
                yield groups[chosen], owners[chosen]


def _cut_up(dataset: FaceData, group_size: int) -> list[_Part]:
    by_weight: dict[float, list[range]] = {}
    for ids, weight in weighted_ranges(dataset):
        by_weight.setdefault(weight, []).append(ids)
    cutters = {weight: GroupCutter(dataset.labels, ranges, group_size) for weight, ranges in by_weight.items()}
    return [_Part(weight, cutter, num_taken(len(cutter.owners), weight)) for weight, cutter in cutters.items()]


def _does_not_divide(size: int, batch_size: int) -> ConfigError:
    fitting = [str(number) for number in range(2, min(batch_size, 64) + 1) if batch_size % number == 0]
    below, above = batch_size - batch_size % size, batch_size - batch_size % size + size
    return ConfigError(
        f"images_per_identity {size} does not divide batch_size {batch_size}; "
        f"{', '.join(fitting) or 'nothing'} would, or take batch_size {f'{below} or ' if below else ''}{above}"
    )
