"""What every augmentation is: a share of images that it changes, and a change."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.data.augment.draws import Draws


class Augmentation(ABC):
    """Changes a share of the images.

    Args:
        probability: the share of images that are changed, 0 to 1.

    Raises:
        ConfigError: a value outside its range.
    """

    name: ClassVar[str]

    def __init__(self, *, probability: float = 1.0) -> None:
        self.probability = self.fraction("probability", probability)

    def choose(self, draws: Draws) -> npt.NDArray[np.bool_]:
        """Which images are changed, (N,)."""
        return draws.uniform("chosen") < self.probability

    @abstractmethod
    def change(self, images: Tensor, draws: Draws) -> Tensor:
        """The changed images, a new uint8 tensor of the same shape on the same device; all of them are chosen.

        Args:
            images: uint8 (M, 3, H, W), M at least 1; not to be written to.
            draws: the numbers for these images.
        """

    def always(self) -> Self:
        """The same with probability 1."""
        certain = copy.copy(self)
        certain.probability = 1.0
        return certain

    def fraction(self, setting: str, value: float) -> float:
        """`value` if it lies between 0 and 1."""
        if not 0 <= value <= 1:
            raise ConfigError(f"augmentation {self.name}: {setting} must lie between 0 and 1, got {value}")
        return float(value)


def per_image(values: npt.NDArray[np.generic], images: Tensor, num_dims: int = 4) -> Tensor:
    """Values (M,) as float32 (M, 1, 1, ...) beside `images`. The host goes on while a GPU still waits for them."""
    host = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return host.to(images.device, non_blocking=True).view(-1, *[1] * (num_dims - 1))


def to_pixels(values: Tensor) -> Tensor:
    """The nearest uint8; changes `values`, which must not be used afterwards."""
    return values.round_().clamp_(0, 255).to(torch.uint8)
