"""Cross entropy and Grouped KD over a classifier, in float64 and with the whole (N, C) matrices.

The distillation is `GroupedKD` in float64, which `tests.distill.test_gkd` proves against loops. With bf16 the inputs of
the products are rounded, and the rounding has the derivative 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd.distill import GroupedKD


@dataclass(frozen=True)
class Side:
    """Embeddings (N, D), class weights (C, D), CosFace margin and scale of one network."""

    embeddings: Tensor
    weight: Tensor
    margin: float
    scale: float


def rounded(values: Tensor, precision: str) -> Tensor:
    if precision == "fp32":
        return values
    return values + (values.detach().bfloat16().double() - values.detach())


def cosines(side: Side, precision: str) -> Tensor:
    norms = [value.norm(dim=1, keepdim=True) for value in (side.embeddings, side.weight)]
    unit = side.embeddings / norms[0].clamp_min(1e-12)
    return rounded(unit, precision) @ rounded(side.weight, precision).T / norms[1].clamp_min(1e-12).T


def logits(side: Side, labels: Tensor, precision: str, *, has_margin: bool = True) -> Tensor:
    cosine = cosines(side, precision)
    is_target = torch.zeros_like(cosine, dtype=torch.bool).scatter_(1, labels[:, None], True)
    return side.scale * (cosine - side.margin * is_target * has_margin)


def cross_entropy(given: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p_y, by a loop over the images."""
    rows = [
        torch.logsumexp(row - row.max().detach(), 0) + row.max().detach() - row[label]
        for row, label in zip(given, labels.tolist(), strict=True)
    ]
    return torch.stack(rows).mean()


def step(
    student: Side, teacher: Side, labels: Tensor, loss: GroupedKD, precision: str, margins: tuple[bool, bool]
) -> dict[str, Tensor]:
    """Losses, and gradients of their sum by the student's embeddings and weights; all float64."""
    embeddings, weight = (value.double().requires_grad_() for value in (student.embeddings, student.weight))
    own = Side(embeddings, weight, student.margin, student.scale)
    other = Side(teacher.embeddings.double(), teacher.weight.double(), teacher.margin, teacher.scale)
    classification = cross_entropy(logits(own, labels, precision), labels)
    losses = loss(
        logits(own, labels, precision, has_margin=margins[0]),
        logits(other, labels, precision, has_margin=margins[1]),
        labels,
    )
    grads = torch.autograd.grad(classification + losses.total, (embeddings, weight))
    found = {"classification": classification, "total": losses.total, **losses.parts, **losses.stats}
    found = {name: value.detach() for name, value in found.items()}
    assert all(math.isfinite(float(value)) for value in found.values())
    return found | {"embeddings": grads[0], "weight": grads[1]}
