"""Loss by JPEG compression."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from gkd.data.augment.augmentation import Augmentation
from gkd.data.augment.draws import Draws, Int64s
from gkd.data.augment.jpeg_loss import lose_by_jpeg

_BEST_QUALITY = 95
_WORST_QUALITY = 10


class Jpeg(Augmentation):
    """What is left of images after JPEG compression with chroma at half resolution (4:2:0).

    The quality is a whole number, uniform in 95 - 85·strength to 95. Only the steps of JPEG that lose something are
    computed, for all images at once and on their device: nothing is lost in writing the coefficients to bytes and
    reading them back. The result is that of libjpeg up to rounding.

    Args:
        probability: the share of images that are changed, 0 to 1.
        strength: how low the quality may go, 0 to 1; 0 is quality 95 always, 1 goes down to 10.

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str] = "jpeg"

    def __init__(self, *, probability: float = 0.2, strength: float = 0.8) -> None:
        super().__init__(probability=probability)
        self.strength = self.fraction("strength", strength)

    def quality(self, draws: Draws) -> Int64s:
        """The quality of each image, (M,)."""
        span = round(self.strength * (_BEST_QUALITY - _WORST_QUALITY))
        return np.asarray(_BEST_QUALITY - draws.whole("quality", span + 1))

    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The images after compression."""
        return lose_by_jpeg(images, self.quality(draws))
