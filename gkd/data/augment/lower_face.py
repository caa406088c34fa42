"""Something over mouth and nose, as a medical mask."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.data.augment.augmentation import Augmentation, per_image, to_pixels
from gkd.data.augment.draws import Draws, Float64s

_TEMPLATE = 112
_REACH = 50.0
_RISE = 8.0
_JAW = 80.0
_CHIN = 120.0
_SHADE = 0.25
_COLOUR_SPREAD = 16
_COLOURS = np.array(
    [[168, 205, 228], [236, 238, 240], [38, 38, 42], [158, 205, 186], [232, 190, 202], [120, 142, 172]], dtype=np.int64
)


class LowerFace(Augmentation):
    """Cover the lower face with a rounded shape of one colour, for faces aligned to the usual five-point template.

    In the template's 112 x 112 coordinates (scaled to other sizes), with t = (x - middle) / half width and
    s = max(0, (y - 80) / 40), a pixel is covered where t² + s² <= 1 (cheeks, narrowing to the chin at y = 120) and
        y >= 112 - reach + tilt·(x - middle) + 8·t².
    The reach is strength·50 ± 12 %: eyes are at y = 52, the tip of the nose at 72, the corners of the mouth at 92. The
    middle (56 ± 3), half width (40 ± 4), tilt (± 0.08) and colour are drawn for each image; the colour, one of six
    that masks are sold in and a little off it, darkens to the sides by 25 %·t².

    Source: masks drawn over the landmarks of a face, as in Anwar and Raychowdhury, "Masked Face Recognition for Secure
    Authentication", 2020; here one shape for all aligned faces, so that no landmarks are needed.

    Args:
        probability: the share of images that are changed, 0 to 1.
        strength: how high the shape reaches; 0 covers nothing, 0.8 up to the tip of the nose, 1 up to its bridge.

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str] = "lower_face"

    def __init__(self, *, probability: float = 0.1, strength: float = 1.0) -> None:
        super().__init__(probability=probability)
        self.strength = self.fraction("strength", strength)

    def outline(self, draws: Draws) -> dict[str, Float64s]:
        """The shape of each image, (M,) each, in the template's pixels: middle, half_width, tilt and top."""
        return {
            "middle": _TEMPLATE / 2 + 3 * draws.around_zero("middle"),
            "half_width": 40 + 4 * draws.around_zero("half width"),
            "tilt": 0.08 * draws.around_zero("tilt"),
            "top": _TEMPLATE - self.strength * _REACH * (1 + 0.12 * draws.around_zero("reach")),
        }

    def colour(self, draws: Draws) -> npt.NDArray[np.int64]:
        """The colour in the middle of each shape, (M, 3), 0 to 255."""
        base = _COLOURS[draws.whole("colour", len(_COLOURS))]
        off = [draws.whole(channel, 2 * _COLOUR_SPREAD + 1) for channel in ("red", "green", "blue")]
        return np.clip(base + np.stack(off, axis=1) - _COLOUR_SPREAD, 0, 255)

    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The images with the shape drawn over them."""
        shape = {key: per_image(values, images) for key, values in self.outline(draws).items()}
        y = _centres(images.shape[2], images).view(1, 1, -1, 1)
        x = _centres(images.shape[3], images).view(1, 1, 1, -1) - shape["middle"]
        across = (x / shape["half_width"]).square()
        down = ((y - _JAW) / (_CHIN - _JAW)).clamp_min(0).square()
        is_covered = (across + down <= 1) & (y >= shape["top"] + x * shape["tilt"] + across * _RISE)
        colour = per_image(self.colour(draws).reshape(-1), images).view(-1, 3, 1, 1)
        shaded = to_pixels(colour * (1 - across.clamp_max(1) * _SHADE))
        return torch.where(is_covered, shaded, images)


def _centres(num_pixels: int, images: Tensor) -> Tensor:
    """The centres of the pixels along a side, in the template's pixels."""
    return (torch.arange(num_pixels, device=images.device, dtype=torch.float32) + 0.5) * (_TEMPLATE / num_pixels)
