"""The values that travel between layers.

Shapes: N images, D embedding dimension, C classes, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Training images after augmentation, on the device that trains.

    images: uint8 (N, 3, H, W), RGB, already mirrored where `is_flipped`. labels: int64 (N,).
    sample_ids: int64 (N,), the index of each image in its data set. is_flipped: bool (N,). These two are on the CPU.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    is_flipped: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Views:
    """What one network shows of a batch: embeddings (N, D) and, where a head was run, class logits (N, C)."""

    embeddings: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """A total to differentiate and its named parts.

    `total` is a scalar. `parts` are scalars, unweighted means over the batch. `stats` are detached scalars to be logged
    beside them (group sizes, masses). `samples` are detached (N,), the same for single images, where a loss knows them.
    None of the four is read back from the device by whoever makes them.
    """

    total: Tensor
    parts: dict[str, Tensor]
    stats: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
