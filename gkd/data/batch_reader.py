"""What a loader's worker does: read and decode one rank's share of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gkd.core import seed as randomness
from gkd.core.errors import DataError, GkdError
from gkd.data.batches import Task
from gkd.data.face_data import FaceData
from gkd.data.transforms import decode_image

_MAX_REPLACEMENTS = 64


@dataclass(frozen=True)
class RawBatch:
    """One rank's share of a micro-batch, on the CPU, before anything is done to the pixels.

    images: uint8 (N, H, W, 3), RGB, not mirrored. labels, sample_ids: int64 (N,). is_flipped: bool (N,), which images
    are to be mirrored. replaced: a description of each record that could not be used and gave way to a following one.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    is_flipped: Tensor
    step: int
    epoch: int
    micro_batch: int
    replaced: tuple[str, ...] = ()

    @property
    def num_replaced(self) -> int:
        """How many records could not be used."""
        return len(self.replaced)

    def __len__(self) -> int:
        return len(self.labels)

    def pin_memory(self) -> RawBatch:
        """The same with the images in page-locked memory, from which a GPU copies without waiting."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True)
class Failure:
    """An error on its way from a worker to the main process."""

    error_type: type[GkdError]
    message: str


@dataclass(frozen=True, kw_only=True)
class BatchReader:
    """Turns a Task into a RawBatch; `reader[task]` is how the loader of torch calls it."""

    data: FaceData
    image_size: tuple[int, int]
    seed: int
    flip_probability: float
    is_skipping: bool

    def __getitem__(self, task: Task) -> RawBatch | Failure:
        try:
            return self._read_batch(task)
        except GkdError as error:
            return Failure(type(error), str(error))

    def _read_batch(self, task: Task) -> RawBatch:
        num_images = len(task.sample_ids)
        images = torch.empty((num_images, *self.image_size, 3), dtype=torch.uint8)
        pixels = images.numpy()
        sample_ids, labels = task.sample_ids.copy(), np.empty(num_images, dtype=np.int64)
        replaced: list[str] = []
        for place in range(num_images):
            sample_ids[place], labels[place] = self._read_usable(int(sample_ids[place]), pixels[place], replaced)
        is_flipped = randomness.uniform(sample_ids, self.seed, task.epoch) < self.flip_probability
        return RawBatch(
            images=images,
            labels=torch.from_numpy(labels),
            sample_ids=torch.from_numpy(sample_ids),
            is_flipped=torch.from_numpy(is_flipped),
            step=task.step,
            epoch=task.epoch,
            micro_batch=task.micro_batch,
            replaced=tuple(replaced),
        )

    def _read_usable(self, sample_id: int, out: np.ndarray, replaced: list[str]) -> tuple[int, int]:
        """Put the image `sample_id`, or where allowed the next usable one, into `out`; returns its id and label."""
        if not self.is_skipping:
            return sample_id, self._read_one(sample_id, out)
        for attempt in range(_MAX_REPLACEMENTS + 1):
            candidate = (sample_id + attempt) % len(self.data)
            try:
                return candidate, self._read_one(candidate, out)
            except DataError as error:
                replaced.append(str(error))
        raise DataError(f"{replaced[-1]} (and the {_MAX_REPLACEMENTS} records before it cannot be used either)")

    def _read_one(self, sample_id: int, out: np.ndarray) -> int:
        try:
            encoded, label = self.data[sample_id]
            decode_image(encoded, self.image_size, self.data.describe(sample_id), out)
        except GkdError:
            raise
        except Exception as error:  # whatever else a data set raises has to name the record
            reason = str(error).split("\n", 1)[0]
            raise DataError(f"{self.data.describe(sample_id)}: {type(error).__name__}: {reason}") from error
        return label
