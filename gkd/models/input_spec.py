"""How a network wants its input: colour order, mean and standard deviation, in the units of 8-bit pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gkd.core.errors import ConfigError, DataError


@dataclass(frozen=True)
class InputSpec:
    """One network's input conversion: (x - mean) / std after the channel order is set.

    color: order of the channels the network takes. mean, std: per channel in that order, in units of 0..255.
    The default maps 0..255 to -1..1.

    Raises:
        ConfigError: an unknown order, not three finite numbers, or a std that is not positive.
    """

    color: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self) -> None:
        if self.color not in ("rgb", "bgr"):
            raise ConfigError(f"input color must be rgb or bgr, got {self.color!r}")
        object.__setattr__(self, "mean", _three_numbers("mean", self.mean))
        object.__setattr__(self, "std", _three_numbers("std", self.std))
        if min(self.std) <= 0:
            raise ConfigError(f"input std must be above 0 in all channels, got {self.std}")

    def __str__(self) -> str:
        """Such as `rgb, mean 127.5, std 127.5`."""
        mean, std = (
            " ".join(f"{value:.6g}" for value in (values[:1] if len(set(values)) == 1 else values))
            for values in (self.mean, self.std)
        )
        return f"{self.color}, mean {mean}, std {std}"

    def convert(self, images: Tensor) -> Tensor:
        """Normalise RGB pixels.

        Args:
            images: uint8 (N, 3, H, W), RGB.

        Returns:
            float32 (N, 3, H, W) in the network's channel order and the input's memory format.

        Raises:
            DataError: images of another type or shape.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise DataError(f"images must be uint8 of shape (N, 3, H, W), got {images.dtype} of {tuple(images.shape)}")
        ordered = images.flip(1) if self.color == "bgr" else images
        return ordered.float().sub_(_per_channel(self.mean, images)).div_(_per_channel(self.std, images))


def _per_channel(values: tuple[float, float, float], images: Tensor) -> Tensor | float:
    # One number for all channels needs no tensor, so the usual case copies nothing to the device.
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)


def _three_numbers(name: str, values: object) -> tuple[float, float, float]:
    numbers = list(values) if isinstance(values, list | tuple) else []
    if len(numbers) != 3 or not all(_is_finite_number(number) for number in numbers):
        raise ConfigError(f"input {name} must be three numbers in units of 0..255 pixels, got {values!r}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
