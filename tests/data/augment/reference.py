"""Slow float64 versions of the augmentations, as loops over pixels from their formulas, and images to try them on.

Images are (H, W, 3) here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.data.augment import Draws

Pixels = npt.NDArray[np.uint8]
Float64s = npt.NDArray[np.float64]


def textured(num_images: int, height: int = 112, width: int = 112, seed: int = 0) -> Tensor:
    """Colourful images (N, 3, H, W) with coarse and fine structure, no two alike."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(0, 200, (num_images, 3, height // 8 + 1, width // 8 + 1))
    blocks = coarse.repeat(8, axis=2).repeat(8, axis=3)[:, :, :height, :width]
    return torch.from_numpy((blocks + generator.uniform(0, 55, blocks.shape)).astype(np.uint8))


def draws_for(num_images: int, name: str, first_id: int = 100) -> Draws:
    """Numbers for images with consecutive sample ids."""
    return Draws(np.arange(first_id, first_id + num_images), seed=7, epoch=3, place=1, name=name)


def to_rows(images: Tensor) -> list[Pixels]:
    """(N, 3, H, W) as a list of (H, W, 3)."""
    return list(images.permute(0, 2, 3, 1).numpy())


def luma(pixel: npt.NDArray[np.generic]) -> float:
    return float(0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2])


def grey(image: Pixels, strength: float) -> Float64s:
    result = np.empty(image.shape)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            pixel = image[row, column].astype(np.float64)
            result[row, column] = pixel + strength * (luma(pixel) - pixel)
    return result


def photometric(image: Pixels, brightness: float, contrast: float, saturation: float) -> Float64s:
    """One after the other: saturation, contrast, brightness."""
    result = image.astype(np.float64)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            pixel = result[row, column]
            result[row, column] = saturation * pixel + (1 - saturation) * luma(pixel)
    lumas = [luma(pixel) for row in result for pixel in row]
    mean = sum(lumas) / len(lumas)
    return np.clip(brightness * (contrast * result + (1 - contrast) * mean), 0, 255)


def cutout(image: Pixels, top: int, left: int, height: int, width: int, colour: npt.NDArray[np.int64]) -> Pixels:
    result = image.copy()
    for row in range(top, top + height):
        for column in range(left, left + width):
            result[row, column] = colour
    return result


def lower_face(
    image: Pixels, middle: float, half_width: float, tilt: float, top: float, colour: npt.NDArray[np.int64]
) -> tuple[Float64s, npt.NDArray[np.bool_]]:
    """The image, and which pixels lie so near an edge that rounding may decide."""
    result, is_near = image.astype(np.float64), np.zeros(image.shape[:2], dtype=np.bool_)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            y, x = (row + 0.5) * 112 / image.shape[0], (column + 0.5) * 112 / image.shape[1]
            t, s = (x - middle) / half_width, max(0.0, (y - 80) / 40)
            outside = t * t + s * s - 1
            below = y - (top + tilt * (x - middle) + 8 * t * t)
            is_near[row, column] = min(abs(outside), abs(below)) < 1e-3
            if outside <= 0 and below >= 0:
                result[row, column] = colour * (1 - 0.25 * t * t)
    return result, is_near


def keys(distance: float) -> float:
    """Keys' cubic convolution with a = -0.75."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def axis(kind: str, num_out: int, num_in: int, start: float = 0.0, extent: float | None = None) -> Float64s:
    """Weights (num_out, num_in) of resampling the stretch from `start` over `extent` pixels, the whole by default."""
    ratio = (num_in if extent is None else extent) / num_out
    weights = np.zeros((num_out, num_in))
    for out in range(num_out):
        centre = start + (out + 0.5) * ratio - 0.5
        for source in range(num_in):
            if kind == "nearest":
                weights[out, source] = (2 * out + 1) * num_in // (2 * num_out) == source
            elif kind == "bilinear":
                weights[out, source] = max(0.0, 1 - abs(centre - source))
            elif kind == "area":
                weights[out, source] = max(0.0, min((out + 1) * ratio, source + 1) - max(out * ratio, source))
            else:
                weights[out, source] = keys(centre - source)
        weights[out] /= weights[out].sum()
    return weights


def apply(image: npt.NDArray[np.generic], rows: Float64s, columns: Float64s) -> Float64s:
    """Sums of weights times pixels, first over the columns, then over the rows."""
    wide = np.zeros((image.shape[0], columns.shape[0], 3))
    for out in range(columns.shape[0]):
        for source in np.flatnonzero(columns[out]):
            wide[:, out] += columns[out, source] * image[:, source].astype(np.float64)
    result = np.zeros((rows.shape[0], columns.shape[0], 3))
    for out in range(rows.shape[0]):
        for source in np.flatnonzero(rows[out]):
            result[out] += rows[out, source] * wide[source]
    return result
