"""What JPEG does to pixels, without the bytes.

Colour to luma and chroma, chroma at half resolution, 8 x 8 cosine transform, rounding to multiples of the table's
steps, and all of it back. Writing those multiples to bytes loses nothing, so it is not done.

Source: ITU-T T.81, sections A.3.3, A.3.4 and annex K.1 (transform, rounding, tables); JFIF 1.02 (colours). The scale
of the tables, the averaging and the triangular interpolation of chroma follow libjpeg. The transform's factors are
multiples of 2^-13, so that sums are whole numbers below 2^24: exact in float32, in any order and on any device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 8
_ONE = 2**13

# fmt: off
_LUMA = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])
_CHROMA = np.array([
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *[99] * 32,
])
# fmt: on


def lose_by_jpeg(images: Tensor, quality: npt.NDArray[np.int64]) -> Tensor:
    """Images (M, 3, H, W), uint8 RGB, after JPEG compression at `quality` (M,), 1 to 100."""
    height, width = images.shape[2:]
    # Encoders repeat the outermost column before they halve the chroma, but its last row after it.
    luma, blue, red = _to_luma_and_chroma(_pad(images.float(), across=16, down=2))
    chroma = _pad(_halve(torch.cat([blue, red], dim=1)), across=8, down=8)
    luma = _round_coefficients(_pad(luma, across=8, down=8), _steps(_LUMA, quality, images))
    chroma = _round_coefficients(chroma, _steps(_CHROMA, quality, images))
    chroma = _double(chroma[:, :, : (height + 1) // 2, : (width + 1) // 2])[:, :, :height, :width]
    return _to_colours(luma[:, :, :height, :width], chroma)


def step_table(base: npt.NDArray[np.int64], quality: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The quantisation steps (M, 64) that libjpeg derives from a table (64,) at each quality (M,)."""
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((base * percent[:, None] + 50) // 100, 1, 255)


def _steps(base: npt.NDArray[np.int64], quality: npt.NDArray[np.int64], images: Tensor) -> Tensor:
    steps = torch.from_numpy(step_table(base, quality).astype(np.float32))
    return steps.to(images.device, non_blocking=True).view(-1, 1, 64)


def _pad(planes: Tensor, across: int, down: int) -> Tensor:
    """Repeat the last column and row until the sides are multiples of `across` and `down`."""
    extra_columns, extra_rows = -planes.shape[3] % across, -planes.shape[2] % down
    if not extra_columns and not extra_rows:
        return planes
    return F.pad(planes, (0, extra_columns, 0, extra_rows), mode="replicate")


def _to_luma_and_chroma(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Y, Cb and Cr minus 128, whole numbers, (M, 1, H, W) each."""
    red, green, blue = pixels[:, 0:1], pixels[:, 1:2], pixels[:, 2:3]
    luma = (red * 0.299 + green * 0.587 + blue * 0.114).round_().sub_(128)
    chroma_blue = (blue * 0.5 - red * 0.168736 - green * 0.331264).round_()
    chroma_red = (red * 0.5 - green * 0.418688 - blue * 0.081312).round_()
    return luma, chroma_blue.clamp_max_(127), chroma_red.clamp_max_(127)


def _to_colours(luma: Tensor, chroma: Tensor) -> Tensor:
    blue, red = chroma[:, 0:1], chroma[:, 1:2]
    luma = luma + 128
    channels = [luma + red * 1.402, luma - blue * 0.344136 - red * 0.714136, luma + blue * 1.772]
    return torch.cat(channels, dim=1).round_().clamp_(0, 255).to(torch.uint8)


def _halve(chroma: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; halves and quarters are rounded down and up by turns, so that no drift builds up."""
    total = chroma[..., ::2, ::2] + chroma[..., ::2, 1::2] + chroma[..., 1::2, ::2] + chroma[..., 1::2, 1::2]
    bias = torch.arange(total.shape[-1], device=total.device, dtype=total.dtype).remainder_(2).add_(1)
    return total.add_(bias).mul_(0.25).floor_()


def _double(chroma: Tensor) -> Tensor:
    """Twice the resolution: three quarters of the nearer and one of the farther neighbour, along both sides."""
    padded = F.pad(chroma, (1, 1, 1, 1), mode="replicate")
    middle = padded[..., 1:-1, :] * 3
    tall = torch.stack([middle + padded[..., :-2, :], middle + padded[..., 2:, :]], dim=-2).flatten(-3, -2)
    middle = tall[..., 1:-1] * 3
    left, right = middle + (tall[..., :-2] + 8), middle + (tall[..., 2:] + 7)
    return torch.stack([left, right], dim=-1).flatten(-2).mul_(1 / 16).floor_()


def _round_coefficients(planes: Tensor, steps: Tensor) -> Tensor:
    """Planes (M, P, H, W) of whole numbers around 0, transformed, rounded to multiples of the steps, and back."""
    num_images, num_planes, height, width = planes.shape
    down, across = height // _BLOCK, width // _BLOCK
    blocks = planes.view(num_images, num_planes, down, _BLOCK, across, _BLOCK).transpose(3, 4)
    transform = _transform(planes)
    multiples = (blocks.reshape(num_images, -1, 64) @ transform.T).div_(steps * _ONE)
    # Halves go away from 0, as libjpeg has it.
    multiples = multiples.add_(multiples.sign().mul_(0.5)).trunc_()
    pixels = (multiples.mul_(steps) @ transform).mul_(1 / _ONE).round_().clamp_(-128, 127)
    restored = pixels.view(num_images, num_planes, down, across, _BLOCK, _BLOCK).transpose(3, 4)
    return restored.reshape(planes.shape)


def _transform(like: Tensor) -> Tensor:
    """The cosine transform of a block as (64, 64) whole numbers, 2^13 times its factors."""
    frequency, place = np.arange(_BLOCK)[:, None], np.arange(_BLOCK)
    cosines = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, np.sqrt(1 / 8), 0.5)
    factors = torch.from_numpy(np.round(np.kron(cosines, cosines) * _ONE).astype(np.float32))
    return factors.to(like.device, non_blocking=True)
