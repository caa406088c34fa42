"""Degradations of decoded faces for measuring, each at a level that the user sets: uint8 images (N, 3, H, W), RGB, on
the CPU, in and out.

What happens to an image is a function of (pixels, degradation, level, seed, image number) alone: not of the batch that
it is in or the rank. What is drawn at random is the same at every level, so that levels differ by their strength only.

N images of H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.core.seed import uniform
from gkd.data.augment.augmentation import to_pixels
from gkd.data.augment.draws import Draws
from gkd.data.augment.grey import thousandfold_luma
from gkd.data.augment.lower_face import LowerFace
from gkd.data.augment.resample import KERNELS, after, area, axis_weights, bicubic, resample

Pixels = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]

_MID_GREY = 128
# Streams of random numbers that no degradation shares with another.
_SQUARE_TOP, _SQUARE_LEFT, _TURN, _NOISE = range(4)


@dataclass(frozen=True)
class Degradation:
    """One way to make images worse.

    name: as in results and on command lines. unit: of a level. levels: the default ones, in order of growing damage.
    lowest, highest: what a level may be. is_whole: whether it is a whole number. none: the level that changes nothing,
    None where no level does. change: `(images, level, image_numbers, seed)` to new images.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    lowest: float
    highest: float
    change: Callable[[Tensor, float, Int64s, int], Tensor]
    none: float | None = None
    is_whole: bool = False

    def __call__(self, images: Tensor, level: float | None, image_numbers: Int64s, seed: int = 0) -> Tensor:
        """The degraded images; `images` itself where the level, or None, changes nothing.

        Args:
            images: uint8 (N, 3, H, W), RGB, on the CPU; not written to.
            level: in units of `unit`; None leaves the images as they are.
            image_numbers: (N,), the place of each image in its set.
            seed: of what is drawn at random.

        Raises:
            ConfigError: a level that is out of range or does not fit the images' size.
        """
        if level is None or level == self.none:
            return images
        self.check(level, (int(images.shape[2]), int(images.shape[3])))
        return self.change(images, level, image_numbers, seed)

    def check(self, level: float, size: tuple[int, int]) -> None:
        """Refuse a level that images of (H, W) pixels cannot have.

        Raises:
            ConfigError: as said.
        """
        what = f"degradation {self.name}: a level is a {self.unit}"
        is_number = isinstance(level, (int, float)) and not isinstance(level, bool) and math.isfinite(level)
        if not is_number or not self.lowest <= level <= self.highest:
            raise ConfigError(f"{what} from {self.lowest:g} to {self.highest:g}, got {level!r}")
        if self.is_whole and level != int(level):
            raise ConfigError(f"{what}, a whole number, got {level!r}")
        if self.name == "low_resolution" and level > min(size):
            raise ConfigError(f"{what} of at most the image's, which is {min(size)}, got {level!r}")
        if self.name == "square" and _square_side(level, size) > min(size):
            raise ConfigError(f"{what}, but a square of {level!r} does not fit into {size[0]}x{size[1]} pixels")


def find_degradations(names: tuple[str, ...] | None) -> tuple[Degradation, ...]:
    """The degradations of these names, all of them for None.

    Raises:
        ConfigError: an unknown name, one named twice, or none.
    """
    if names is None:
        return tuple(DEGRADATIONS.values())
    unknown = [name for name in names if name not in DEGRADATIONS]
    if unknown or not names or len(set(names)) < len(names):
        given = ", ".join(unknown or names) or "none"
        raise ConfigError(f"degradations must be different ones of {', '.join(DEGRADATIONS)}, got {given}")
    return tuple(DEGRADATIONS[name] for name in names)


def _blur(images: Tensor, sigma: float, image_numbers: Int64s, seed: int) -> Tensor:
    """Gaussian blur over 4 sigma to each side; borders are mirrored without their outermost pixel."""
    side = 2 * math.ceil(4 * sigma) + 1

    def blur(pixels: Pixels, _: int) -> Pixels:
        # In float32: for uint8, OpenCV rounds the weights to multiples of 1/256, which is coarse for a wide kernel.
        blurred = cv2.GaussianBlur(pixels.astype(np.float32), (side, side), sigma, sigmaY=sigma)
        return _as_pixels(np.rint(blurred).clip(0, 255))

    return _each(images, blur)


def _jpeg(images: Tensor, quality: float, image_numbers: Int64s, seed: int) -> Tensor:
    """Through libjpeg and back, chroma at half resolution (4:2:0)."""

    def encode(pixels: Pixels, _: int) -> Pixels:
        settings = [cv2.IMWRITE_JPEG_QUALITY, int(quality), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLING_420]
        _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], settings)
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded is not None, "the codec reads what it wrote"
        return _as_pixels(decoded[..., ::-1])

    return _each(images, encode)


def _low_resolution(images: Tensor, side: float, image_numbers: Int64s, seed: int) -> Tensor:
    """Down by area, up by bicubic, in one product of weights; the longer side keeps the proportions."""
    height, width = images.shape[2:]
    smalls = [max(1, round(side * length / min(height, width))) for length in (height, width)]
    rows, columns = (_down_and_up(length, small) for length, small in zip((height, width), smalls, strict=True))
    return resample(images, rows.expand(len(images), -1, -1), columns.expand(len(images), -1, -1)).contiguous()


def _down_and_up(length: int, small: int) -> Tensor:
    full, less = torch.tensor([float(length)]), torch.tensor([float(small)])
    down, up = (torch.tensor([KERNELS.index(kernel)]) for kernel in (area, bicubic))
    return after(axis_weights(up, full, less, length), axis_weights(down, less, full, length))


def _brightness(images: Tensor, factor: float, image_numbers: Int64s, seed: int) -> Tensor:
    return to_pixels(images.float().mul_(factor))


def _contrast(images: Tensor, factor: float, image_numbers: Int64s, seed: int) -> Tensor:
    """factor·x + (1 - factor)·(mean luma of the image)."""
    pixels = images.float()
    mean = thousandfold_luma(pixels).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).div_(1000)
    return to_pixels(pixels.mul_(factor).add_(mean.mul_(1 - factor).float()))


def _noise(images: Tensor, sigma: float, image_numbers: Int64s, seed: int) -> Tensor:
    """Gaussian noise, apart in every pixel and channel."""
    shape = images.shape[1:]
    drawn = np.stack([_normal(seed, int(number), tuple(shape)) for number in image_numbers])
    return to_pixels(torch.from_numpy(drawn).mul_(sigma).add_(images))


def _normal(seed: int, number: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    generator = np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, _NOISE]))
    return generator.standard_normal(shape, dtype=np.float32)


def _mask(images: Tensor, reach: float, image_numbers: Int64s, seed: int) -> Tensor:
    """The shape of `LowerFace`: 0.8 reaches the tip of the nose, 1 its bridge."""
    step = LowerFace(probability=1.0, strength=reach)
    return step.change(images, Draws(image_numbers, seed, 0, 0, step.name))


def _square(images: Tensor, share: float, image_numbers: Int64s, seed: int) -> Tensor:
    """A mid-grey square at a place that is drawn for each image, wholly inside it."""
    height, width = images.shape[2:]
    side = _square_side(share, (height, width))
    tops = np.floor(uniform(image_numbers, seed, 0, _SQUARE_TOP) * (height - side + 1)).astype(np.int64)
    lefts = np.floor(uniform(image_numbers, seed, 0, _SQUARE_LEFT) * (width - side + 1)).astype(np.int64)
    result = images.clone()
    for image, top, left in zip(result, tops, lefts, strict=True):
        image[:, top : top + side, left : left + side] = _MID_GREY
    return result


def _square_side(share: float, size: tuple[int, int]) -> int:
    return max(1, round(math.sqrt(share * size[0] * size[1])))


def _rotation(images: Tensor, angle: float, image_numbers: Int64s, seed: int) -> Tensor:
    """About the middle, to a side that is drawn for each image; bilinear, borders repeated."""
    height, width = images.shape[2:]
    angles = np.where(uniform(image_numbers, seed, 0, _TURN) < 0.5, -angle, angle)

    def turn(pixels: Pixels, place: int) -> Pixels:
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), float(angles[place]), 1.0)
        size = (width, height)
        return _as_pixels(cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))

    return _each(images, turn)


def _each(images: Tensor, function: Callable[[Pixels, int], Pixels]) -> Tensor:
    """`function` of each image's pixels (H, W, 3) and its place in the batch."""
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    rows = images.permute(0, 2, 3, 1).contiguous().numpy()
    for place, pixels in enumerate(rows):
        result[place] = torch.from_numpy(np.ascontiguousarray(function(pixels, place))).permute(2, 0, 1)
    return result


def _as_pixels(array: npt.NDArray[np.generic]) -> Pixels:
    return np.asarray(array, dtype=np.uint8)


_SAMPLING_420: int = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420

_ALL = (
    Degradation("blur", "sigma in pixels", (0.5, 1.0, 2.0, 3.0), 0, 16, _blur, none=0),
    Degradation("jpeg", "quality", (40, 20, 10, 5), 1, 100, _jpeg, is_whole=True),
    Degradation("low_resolution", "side in pixels", (56, 28, 20, 14), 1, 4096, _low_resolution, is_whole=True),
    Degradation("darkness", "factor of the grey levels", (0.6, 0.4, 0.2, 0.1), 0.01, 1, _brightness, none=1),
    Degradation("brightness", "factor of the grey levels", (1.5, 2.0, 3.0, 4.0), 1, 16, _brightness, none=1),
    Degradation("contrast", "factor of the distance from the mean", (0.6, 0.4, 0.2, 0.1), 0.01, 1, _contrast, none=1),
    Degradation("noise", "standard deviation in grey levels", (5, 10, 20, 40), 0, 128, _noise, none=0),
    Degradation("mask", "reach, 1 for the bridge of the nose", (0.4, 0.6, 0.8, 1.0), 0, 1, _mask, none=0),
    Degradation("square", "share of the area", (0.05, 0.1, 0.2, 0.4), 0, 0.9, _square, none=0),
    Degradation("rotation", "angle in degrees", (5, 10, 20, 30), 0, 90, _rotation, none=0),
)
DEGRADATIONS: dict[str, Degradation] = {each.name: each for each in _ALL}
