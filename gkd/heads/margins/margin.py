"""What all margins share: only the N target entries of (N, C) cosines are changed, everything is scaled."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gkd.core.classes import check_labels, compute_dtype
from gkd.core.errors import ConfigError


class Margin(nn.Module, ABC):
    """Turn cosines (N, C) into logits: s·f(cosθ_y) at the target, s·cosθ_j elsewhere.

    A subclass gives f and its derivative on the targets alone. One (N, C) tensor is made on the way forward and one on
    the way back. Computed in fp32 (float64 for float64 input); the gradient has the type of `cosine`.
    """

    def __init__(self, *, margin: float, scale: float, margin_limit: float) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ConfigError(f"margin.scale must be a number above 0, got {scale}; 64 is usual")
        if not 0 <= margin < margin_limit:
            raise ConfigError(
                f"margin.margin of {type(self).__name__} must lie in [0, {margin_limit:.4g}), got {margin}"
            )
        self.margin = float(margin)
        self.scale = float(scale)

    def forward(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """Logits with the margin on the target.

        Args:
            cosine: (N, C), in [-1, 1].
            labels: int64 (N,), in [0, C).

        Raises:
            ConfigError: the shapes or types do not fit.
            DataError: a label is outside [0, C) (checked on the CPU).
        """
        check_labels(labels, cosine)
        index = labels.unsqueeze(1)
        target = cosine.detach().gather(1, index).to(compute_dtype(cosine))
        value, slope = self.shift(target)
        logits: Tensor = _ShiftTargets.apply(cosine, index, value, slope, self.scale)
        return logits

    @abstractmethod
    def shift(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """f(cosθ) and df/dcosθ for the target cosines (N, 1)."""

    def plain(self, cosine: Tensor) -> Tensor:
        """Logits without the margin, s·cosθ (N, C), in fp32 (float64 for float64 input)."""
        return cosine.to(compute_dtype(cosine)) * self.scale

    def extra_repr(self) -> str:
        return f"margin={self.margin}, scale={self.scale}"


class _ShiftTargets(torch.autograd.Function):
    """scale · cosine, with `value` in place of the target cosines and `slope` as their derivative."""

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, index: Tensor, value: Tensor, slope: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(index, slope)
        ctx.scale, ctx.dtype = scale, cosine.dtype
        logits = cosine.to(value.dtype) * scale
        return logits.scatter_(1, index, value * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        index, slope = ctx.saved_tensors
        grad = grad_logits * ctx.scale
        grad.scatter_(1, index, grad.gather(1, index) * slope)
        return grad.to(ctx.dtype), None, None, None, None
