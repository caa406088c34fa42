"""Mirroring."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gkd.core import seed as randomness
from gkd.data.augment.augmentation import Augmentation
from gkd.data.augment.draws import Draws


class Flip(Augmentation):
    """Mirror images left to right.

    Which ones depends on (seed, epoch, sample id) alone, not on the place in the list: a teacher's stored embeddings
    are looked up by it.

    Args:
        probability: the share of images that are mirrored, 0 to 1.

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str] = "flip"

    def __init__(self, *, probability: float = 0.5) -> None:
        super().__init__(probability=probability)

    def choose(self, draws: Draws) -> npt.NDArray[np.bool_]:
        """Which images are mirrored, (N,): those whose number of stream 0 is below the probability."""
        return randomness.uniform(draws.sample_ids, draws.seed, draws.epoch) < self.probability

    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The mirror images."""
        return images.flip(-1)
