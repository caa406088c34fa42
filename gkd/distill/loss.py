"""What all distillation losses share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gkd.core.class_shard import ClassShard
from gkd.core.classes import check_labels
from gkd.core.errors import ConfigError
from gkd.core.types import Losses

# What a loss can ask for, in the order in which it gets them.
NEEDS = ("logits", "embeddings")

# Shorter vectors have no direction: they stay 0 and no gradient reaches them.
_SHORTEST_NORM = 1e-12


class DistillLoss(nn.Module, ABC):
    """A loss between what the student and the teacher show of one batch; no gradient reaches the teacher.

    `needs` is a subset of {"logits", "embeddings"}. `forward` gets, for each of them in this order, the student's
    tensor and then the teacher's, and after them the labels: int64 (N,). Parameters of a loss are trained with the
    student.
    """

    needs: frozenset[str]

    @abstractmethod
    def forward(self, *tensors: Any, **named: Any) -> Losses:
        """The losses of one batch; a subclass names the tensors that it needs."""

    def set_dims(self, student_dim: int, teacher_dim: int) -> None:
        """Be told, once and before training, how long the student's and the teacher's embeddings are."""


def check_logits(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, shard: ClassShard | None = None
) -> None:
    """Refuse logits of different shapes, and labels that do not fit them.

    Args:
        shard: which classes the columns are; None for all.

    Raises:
        ConfigError: shapes or types do not fit.
        DataError: a label is outside [0, C) (checked on the CPU).
    """
    if student_logits.shape != teacher_logits.shape or not teacher_logits.is_floating_point():
        raise ConfigError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} must be "
            "floating-point (N, C) of equal shape: both heads need the same classes in the same order"
        )
    if shard is not None and student_logits.shape[1:] != (shard.size,):
        raise ConfigError(
            f"logits over a class shard must be (N, {shard.size}), one column for each class from {shard.start} to "
            f"{shard.stop - 1}, got {tuple(student_logits.shape)}"
        )
    check_labels(labels, student_logits, None if shard is None else shard.num_classes)


def check_embeddings(student_embeddings: Tensor, teacher_embeddings: Tensor, labels: Tensor) -> None:
    """Refuse embeddings that are not floating-point (N, D) matrices of the same N, and labels not of this N.

    Their lengths D may differ.

    Raises:
        ConfigError: shapes or types do not fit.
    """
    both = (student_embeddings, teacher_embeddings)
    if any(tensor.ndim != 2 or not tensor.is_floating_point() or 0 in tensor.shape for tensor in both) or (
        len(student_embeddings) != len(teacher_embeddings)
    ):
        raise ConfigError(
            f"student embeddings {tuple(student_embeddings.shape)} and teacher embeddings "
            f"{tuple(teacher_embeddings.shape)} must be non-empty floating-point (N, D) of the same N images"
        )
    if labels.dtype != torch.int64 or labels.shape != student_embeddings.shape[:1]:
        raise ConfigError(
            f"labels must be int64 of shape ({len(student_embeddings)},) beside embeddings "
            f"{tuple(student_embeddings.shape)}, got {labels.dtype} {tuple(labels.shape)}"
        )


def check_temperature(name: str, temperature: float) -> float:
    """`temperature` of the loss `name` if it is a number above 0.

    Raises:
        ConfigError: it is not.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"{name}.temperature must be a number above 0, got {temperature}; 4 is usual")
    return float(temperature)


def check_weights(name: str, weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of the parts of the loss `name` if they are numbers of at least 0 and not all 0.

    Raises:
        ConfigError: they are not.
    """
    for part, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{name}.{part}_weight must be a number of at least 0, got {weight}")
    if not any(weights.values()):
        raise ConfigError(f"{name}: all weights are 0, so there is nothing to learn; set one above 0")
    return {part: float(weight) for part, weight in weights.items()}


def unit_vectors(embeddings: Tensor, dtype: torch.dtype) -> Tensor:
    """Embeddings (N, D) divided by their L2 norms, in `dtype`; an all-zero one stays 0 and gets no gradient."""
    embeddings = embeddings.to(dtype)
    norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    return embeddings * torch.where(norm > _SHORTEST_NORM, norm.clamp_min(_SHORTEST_NORM).reciprocal(), 0.0)
