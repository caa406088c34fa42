"""A rectangle without a face."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.data.augment.augmentation import Augmentation, per_image
from gkd.data.augment.draws import Draws, Int64s

_LARGEST_SIDE = 0.6
_MID_GREY = 128
_FILLS = ("grey", "random")


class Cutout(Augmentation):
    """Fill a random rectangle that lies inside the image.

    Its height and width are drawn apart, each uniform between half and all of 0.6·strength of the image's.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017. There it
    is a square of a fixed size that may reach over the border, filled with the mean of the data.

    Args:
        probability: the share of images that are changed, 0 to 1.
        strength: scale of the rectangle, 0 to 1; 0 changes nothing, 1 hides up to 36 % of the image.
        fill: grey (mid-grey, near 0 for a network) or random (one random colour an image).

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str] = "cutout"

    def __init__(
        self, *, probability: float = 0.2, strength: float = 0.7, fill: Literal["grey", "random"] = "grey"
    ) -> None:
        super().__init__(probability=probability)
        self.strength = self.fraction("strength", strength)
        if fill not in _FILLS:
            raise ConfigError(f"augmentation {self.name}: fill must be `grey` or `random`, got `{fill}`")
        self.fill = fill

    def span(self, draws: Draws, side: str, num_pixels: int) -> tuple[Int64s, Int64s]:
        """First pixel and number of pixels, (M,) each, along a side of `num_pixels`."""
        share = self.strength * _LARGEST_SIDE * (1 + draws.uniform(side)) / 2
        length = np.ceil(share * num_pixels).astype(np.int64)
        return draws.whole(f"{side} offset", num_pixels - length + 1), length

    def colour(self, draws: Draws) -> Int64s:
        """The colour that fills each rectangle, (M, 3)."""
        if self.fill == "grey":
            return np.full((len(draws.sample_ids), 3), _MID_GREY, dtype=np.int64)
        return np.stack([draws.whole(channel, 256) for channel in ("red", "green", "blue")], axis=1)

    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The images with a rectangle filled."""
        is_inside = torch.ones((), dtype=torch.bool, device=images.device)
        for dim, side in ((2, "height"), (3, "width")):
            first, length = self.span(draws, side, images.shape[dim])
            shape = [1, 1, 1, 1]
            shape[dim] = -1
            pixel = torch.arange(images.shape[dim], device=images.device).view(shape)
            is_inside = is_inside & (pixel >= per_image(first, images)) & (pixel < per_image(first + length, images))
        colour = per_image(self.colour(draws).reshape(-1), images).view(-1, 3, 1, 1)
        return torch.where(is_inside, colour.to(torch.uint8), images)
