"""Loss of colour."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gkd.data.augment.augmentation import Augmentation, to_pixels
from gkd.data.augment.draws import Draws


class Grey(Augmentation):
    """Blend images with their grey selves: x + strength·(luma - x), luma = 0.299·R + 0.587·G + 0.114·B.

    Source: ITU-R BT.601, section 2.5.1, for the luma.

    Args:
        probability: the share of images that are changed, 0 to 1.
        strength: how much colour is lost; 0 none, 1 all of it.

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str] = "grey"

    def __init__(self, *, probability: float = 0.1, strength: float = 1.0) -> None:
        super().__init__(probability=probability)
        self.strength = self.fraction("strength", strength)

    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The greyer images."""
        pixels = images.float()
        luma = thousandfold_luma(pixels) / 1000
        return to_pixels(pixels.mul_(1 - self.strength).add_(luma * self.strength))


def thousandfold_luma(pixels: Tensor) -> Tensor:
    """1000 times the luma of pixels (M, 3, H, W), (M, 1, H, W): whole numbers, which float32 has exactly."""
    return pixels[:, 0:1] * 299 + pixels[:, 1:2] * 587 + pixels[:, 2:3] * 114
