"""Brightness, contrast and saturation."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gkd.data.augment.augmentation import Augmentation, per_image, to_pixels
from gkd.data.augment.draws import Draws, Float64s
from gkd.data.augment.grey import thousandfold_luma


class Photometric(Augmentation):
    """Change brightness, contrast and saturation, each by a factor drawn around 1.

    Brightness b: b·x; contrast c: c·x + (1 - c)·(mean luma of the image); saturation s: s·x + (1 - s)·luma. With no
    rounding or clipping in between the three can be swapped at will, so there is no order to draw; the result is
        b·(c·(s·x + (1 - s)·luma) + (1 - c)·mean luma), rounded and clipped once.
    A factor is uniform in 1 ± strength·(its setting).

    Source: the colour jitter of AdaFace's training (Kim, Jain, Liu, CVPR 2022), whose settings are the defaults here.
    Public code rounds and clips after each of the three, in a random order.

    Args:
        probability: the share of images that are changed, 0 to 1.
        strength: scale of the three settings, 0 to 1; 0 changes nothing.
        brightness: the largest relative change of brightness at strength 1, 0 to 1.
        contrast: the same of contrast.
        saturation: the same of saturation.

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str] = "photometric"

    def __init__(
        self,
        *,
        probability: float = 0.2,
        strength: float = 1.0,
        brightness: float = 0.5,
        contrast: float = 0.5,
        saturation: float = 0.5,
    ) -> None:
        super().__init__(probability=probability)
        self.strength = self.fraction("strength", strength)
        self.brightness = self.fraction("brightness", brightness)
        self.contrast = self.fraction("contrast", contrast)
        self.saturation = self.fraction("saturation", saturation)

    def factors(self, draws: Draws) -> tuple[Float64s, Float64s, Float64s]:
        """Brightness, contrast and saturation of each image, (M,) each."""
        settings = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        brightness, contrast, saturation = (
            1 + self.strength * most * draws.around_zero(what) for what, most in settings.items()
        )
        return brightness, contrast, saturation

    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The images with their factors applied."""
        brightness, contrast, saturation = self.factors(draws)
        pixels = images.float()
        luma = thousandfold_luma(pixels)
        mean = luma.mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).float()
        of_luma = brightness * contrast * (1 - saturation) / 1000
        of_mean = brightness * (1 - contrast) / 1000
        pixels.mul_(per_image(np.asarray(brightness * contrast * saturation), images))
        pixels.add_(luma.mul_(per_image(of_luma, images)))
        return to_pixels(pixels.add_(mean * per_image(of_mean, images)))
