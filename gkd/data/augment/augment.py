"""The list of augmentations that a run applies, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.data.augment.augmentation import Augmentation
from gkd.data.augment.draws import Draws, Int64s
from gkd.data.augment.flip import Flip


class Augment:
    """Applies each step to the images that it chooses.

    Choices and parameters are drawn on the CPU; the pixels stay on their device, and nothing waits for it.

    Args:
        steps: in the order in which they are applied; `flip` may be anywhere, at most once.
        seed: of the run.

    Raises:
        ConfigError: more than one `flip`.
    """

    def __init__(self, steps: Sequence[Augmentation], seed: int) -> None:
        num_flips = sum(isinstance(step, Flip) for step in steps)
        if num_flips > 1:
            raise ConfigError(
                f"augment: flip is listed {num_flips} times, but mirroring twice undoes itself; keep one of them"
            )
        self.steps = tuple(steps)
        self.seed = seed

    def __call__(self, images: Tensor, sample_ids: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Augment a batch, or any part of one.

        Args:
            images: uint8 (N, 3, H, W), RGB, on any device; left unchanged.
            sample_ids: int64 (N,) on the CPU.
            epoch: the number of the epoch.

        Returns:
            The images, uint8 (N, 3, H, W) in the same memory format (`images` itself where no image is chosen), and
            which of them are mirrored, bool (N,) on the CPU.
        """
        ids = sample_ids.numpy()
        is_flipped = np.zeros(len(ids), dtype=np.bool_)
        result = images
        for place, step in enumerate(self.steps):
            draws = Draws(ids, self.seed, epoch, place, step.name)
            is_chosen = step.choose(draws)
            if isinstance(step, Flip):
                is_flipped = is_chosen
            rows = np.flatnonzero(is_chosen)
            if len(rows):
                result = _change(result, step, draws.of(rows), rows, is_ours=result is not images)
        return result, torch.from_numpy(is_flipped)


def _change(images: Tensor, step: Augmentation, draws: Draws, rows: Int64s, *, is_ours: bool) -> Tensor:
    """`images` with those at `rows` changed; written in place where they are ours to write to."""
    if len(rows) == len(images):
        changed = step.change(images, draws)
        return (images if is_ours else torch.empty_like(images)).copy_(changed)
    images = images if is_ours else images.clone()
    index = torch.from_numpy(rows).to(images.device, non_blocking=True)
    # Rows are taken and put several times as fast with the dimensions in the order of memory.
    is_last = images.is_contiguous(memory_format=torch.channels_last)
    to_stored, to_images = ((0, 2, 3, 1), (0, 3, 1, 2)) if is_last else ((0, 1, 2, 3), (0, 1, 2, 3))
    stored = images.permute(to_stored)
    changed = step.change(stored.index_select(0, index).permute(to_images), draws)
    stored.index_copy_(0, index, changed.permute(to_stored))
    return images
