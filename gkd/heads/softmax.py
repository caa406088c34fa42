"""The full head: every class weight on every process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gkd.core.errors import ConfigError

# Shorter vectors have no direction: their cosines are 0 and no gradient reaches them.
SHORTEST_NORM = 1e-12
WEIGHT_DEVIATION = 0.01


def check_sizes(embedding_dim: int, num_classes: int) -> None:
    """Refuse sizes that leave nothing to compare.

    Raises:
        ConfigError: a size below 1.
    """
    if embedding_dim < 1 or num_classes < 1:
        raise ConfigError(
            f"a head needs embedding_dim and num_classes of at least 1, got {embedding_dim} and {num_classes}"
        )


class SoftmaxHead(nn.Module):
    """One weight vector per class; a class's score is its cosine with the embedding.

    The weights start as N(0, 0.01²), as in public ArcFace training code.

    Args:
        embedding_dim: D.
        num_classes: C.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        check_sizes(embedding_dim, num_classes)
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.normal_(self.weight, std=WEIGHT_DEVIATION)

    def forward(self, embeddings: Tensor) -> Tensor:
        """The same as `cosine`."""
        return self.cosine(embeddings)

    def cosine(self, embeddings: Tensor) -> Tensor:
        """Cosines of embeddings (N, D) with the class weights: (N, C) in fp32, in [-1, 1], also under autocast.

        Rounding can put a product just outside [-1, 1]; it is brought back without touching the gradient, which an
        ordinary clamp would set to 0 for exactly the best-fitting images.

        Raises:
            ConfigError: the embeddings are not (N, D).
        """
        embedding_dim = self.weight.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != embedding_dim:
            raise ConfigError(
                f"the head takes embeddings of shape (N, {embedding_dim}), got {tuple(embeddings.shape)}; the "
                "backbone's and the head's embedding_dim must be equal"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine: Tensor = _Cosines.apply(unit_vectors(embeddings.to(self.weight.dtype)), self.weight)
        return cosine

    def extra_repr(self) -> str:
        return f"embedding_dim={self.weight.shape[1]}, num_classes={self.weight.shape[0]}"


def unit_vectors(vectors: Tensor) -> Tensor:
    """Rows (N, D) divided by their lengths; one without a direction becomes 0 and gets no gradient."""
    return vectors * _inverse_norms(vectors)


def _inverse_norms(vectors: Tensor) -> Tensor:
    """1 / length of each row (N, D), or 0: (N, 1)."""
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(norm > SHORTEST_NORM, norm.clamp_min(SHORTEST_NORM).reciprocal(), 0.0)


class _Cosines(torch.autograd.Function):
    """x · w_c / |w_c| for unit vectors x (N, D) and weights w (C, D): (N, C), in [-1, 1].

    The weights are never made unit vectors, which autograd would do in half a dozen tensors of their size. With
    h = dL/dcos / |w_c|: dL/dx = h w and dL/dw_c = sum_n h_nc x_n - w_c / |w_c| sum_n h_nc cos_nc.
    """

    @staticmethod
    def forward(ctx: Any, units: Tensor, weight: Tensor) -> Tensor:
        inverse = _inverse_norms(weight)
        cosine = torch.mm(units, weight.t()).mul_(inverse.t()).clamp_(-1.0, 1.0)
        ctx.save_for_backward(units, weight, inverse, cosine)
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        units, weight, inverse, cosine = ctx.saved_tensors
        scaled = grad * inverse.t()
        grad_units = torch.mm(scaled, weight) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_units, None
        grad_weight = torch.mm(scaled.t(), units)
        along = torch.linalg.vecdot(scaled, cosine, dim=0).unsqueeze(1)
        return grad_units, grad_weight.addcmul_(weight, along.mul_(inverse), value=-1.0)
