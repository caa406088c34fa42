"""What all backbones share: their attributes, the checks of their settings, and full precision at the end.

Shapes: N images, D embedding dimension, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gkd.core.errors import ConfigError

MAX_EMBEDDING_DIM = 65_536
MIN_SIDE = 16
MAX_SIDE = 1024


class Backbone(nn.Module):
    """A network from normalised float images (N, 3, H, W) to raw embeddings (N, D).

    Attributes:
        embedding_dim: D.
        input_size: (H, W) in pixels; other sizes do not fit the last layer.
        architecture: name and all settings, as `create_backbone` takes them; empty where it did not build the network.
    """

    embedding_dim: int
    input_size: tuple[int, int]
    architecture: dict[str, Any]

    def __init__(self, *, embedding_dim: int, input_size: tuple[int, int]) -> None:
        super().__init__()
        self.embedding_dim = check_integer("embedding_dim", embedding_dim, 1, MAX_EMBEDDING_DIM)
        height, width = check_integers("input_size", input_size, 2, MIN_SIDE, MAX_SIDE)
        self.input_size = (height, width)
        self.architecture = {}

    def final_size(self, pooling: int = 1) -> tuple[int, int]:
        """Height and width of the last feature map, after pooling that rounds down and four halvings that round up."""
        height, width = self.input_size
        return -(-(height // pooling) // 16), -(-(width // pooling) // 16)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast, for layers that must run in the dtype of their weights."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def embed_in_full_precision(features: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
    """The last linear layer and BatchNorm of a backbone, outside autocast: features (N, F) to embeddings (N, D)."""
    with full_precision(features.device):
        embeddings: Tensor = norm(linear(features.to(linear.weight.dtype)))
    return embeddings


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """`value` if it is an integer in [low, high].

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return value


def check_integers(name: str, values: object, count: int, low: int, high: int) -> tuple[int, ...]:
    """`values` as a tuple if they are `count` integers in [low, high].

    Raises:
        ConfigError: they are not.
    """
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or len(values) != count:
        raise ConfigError(f"{name} must be a list of {count} integers, got {values!r}")
    return tuple(check_integer(f"{name}[{index}]", value, low, high) for index, value in enumerate(values))


def check_number(name: str, value: object, low: float, high: float) -> float:
    """`value` if it is a number in [low, high].

    Raises:
        ConfigError: it is not (NaN never is).
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)
