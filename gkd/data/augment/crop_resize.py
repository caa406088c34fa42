"""Faces framed more closely."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.data.augment.augmentation import Augmentation, per_image
from gkd.data.augment.draws import Draws, Float64s
from gkd.data.augment.resample import crop_weights, resample

_LARGEST_LOSS = 0.5


class CropResize(Augmentation):
    """Cut a random rectangle out of the image and bring it back to full size by bilinear interpolation.

    The rectangle keeps a share of the side that is uniform in 1 - 0.5·strength to 1; one of its sides, drawn, is
    further divided by a number uniform in 1 to `stretch`. It lies anywhere inside the image, also between pixels.

    Source: the crop of AdaFace's training (Kim, Jain, Liu, CVPR 2022) is the model; there the cut-out stays in its
    place and the rest becomes black.

    Args:
        probability: the share of images that are changed, 0 to 1.
        strength: how much may be cut away, 0 to 1; 0 nothing but what `stretch` does, 1 up to half of each side.
        stretch: the largest change of the face's proportions, 1 to 2; 1 keeps them.

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str] = "crop_resize"

    def __init__(self, *, probability: float = 0.2, strength: float = 0.5, stretch: float = 1.0) -> None:
        super().__init__(probability=probability)
        self.strength = self.fraction("strength", strength)
        if not 1 <= stretch <= 2:
            raise ConfigError(f"augmentation {self.name}: stretch must lie between 1 and 2, got {stretch}")
        self.stretch = float(stretch)

    def spans(self, draws: Draws) -> dict[str, tuple[Float64s, Float64s]]:
        """Start and extent of "height" and "width", (M,) each, as shares of the image's side."""
        share = 1 - _LARGEST_LOSS * self.strength * draws.uniform("share")
        stretched = share / (1 + (self.stretch - 1) * draws.uniform("stretch"))
        is_narrow = draws.uniform("narrow") < 0.5
        extents = {"height": np.where(is_narrow, share, stretched), "width": np.where(is_narrow, stretched, share)}
        return {side: ((1 - extent) * draws.uniform(side), extent) for side, extent in extents.items()}

    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The rectangles at full size."""
        weights = []
        for (start, extent), length in zip(self.spans(draws).values(), images.shape[2:], strict=True):
            first, count = per_image(start * length, images, 1), per_image(extent * length, images, 1)
            weights.append(crop_weights(first, count, length))
        return resample(images, weights[0], weights[1])
