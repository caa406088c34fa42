"""Faces from afar."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gkd.data.augment.augmentation import Augmentation, per_image
from gkd.data.augment.draws import Draws, Int64s
from gkd.data.augment.resample import KERNELS, after, axis_weights, resample

_LARGEST_LOSS = 0.8


class LowResolution(Augmentation):
    """Make images smaller and large again, by two interpolations drawn from nearest, bilinear, area and bicubic.

    The small side is the full one times a number uniform in 1 - 0.8·strength to 1, rounded down, at least 1 pixel.
    As in OpenCV, only area looks at every pixel while making smaller: the others alias, as cheap cameras do. The two
    resamplings are one product of weights, so that the small image is not rounded to whole grey levels in between.

    Source: the low-resolution augmentation of AdaFace's training (Kim, Jain, Liu, CVPR 2022), which draws from five
    interpolations of OpenCV; Lanczos is left out here.

    Args:
        probability: the share of images that are changed, 0 to 1.
        strength: how small images may become, 0 to 1; 0 changes nothing, 1 goes down to a fifth of the side.

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str] = "low_resolution"

    def __init__(self, *, probability: float = 0.2, strength: float = 1.0) -> None:
        super().__init__(probability=probability)
        self.strength = self.fraction("strength", strength)

    def small_side(self, draws: Draws, num_pixels: int) -> Int64s:
        """What a side of `num_pixels` comes down to in each image, (M,)."""
        share = 1 - _LARGEST_LOSS * self.strength * draws.uniform("share")
        return np.maximum(np.floor(share * num_pixels), 1).astype(np.int64)

    def kernels(self, draws: Draws) -> tuple[Int64s, Int64s]:
        """The interpolations down and up of each image, (M,) each: places in `KERNELS`."""
        return draws.whole("down", len(KERNELS)), draws.whole("up", len(KERNELS))

    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The images without their fine detail."""
        height, width = images.shape[2:]
        rows = self._weights(height, images, draws)
        return resample(images, rows, rows if width == height else self._weights(width, images, draws))

    def _weights(self, length: int, images: Tensor, draws: Draws) -> Tensor:
        small = per_image(self.small_side(draws, length), images, 1)
        full = torch.full_like(small, length)
        down, up = (torch.from_numpy(kernel) for kernel in self.kernels(draws))
        return after(axis_weights(up, full, small, length), axis_weights(down, small, full, length))
