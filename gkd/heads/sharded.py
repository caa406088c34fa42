"""The softmax head with its class weights split over the ranks.

Shapes: N images of all ranks, D embedding dimension, C classes, K on this rank, M of them in play, c in a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gkd.core.class_shard import ClassShard
from gkd.heads.products import Precision, matmul
from gkd.heads.softmax import SHORTEST_NORM, WEIGHT_DEVIATION, check_sizes

# Weights are drawn so many rows at a time: only the rows of this rank are kept.
_ROWS_DRAWN_AT_ONCE = 16_384


class ShardedHead(nn.Module):
    """Every rank holds the weights of C / W of the classes, with their momentum and gradient, and no others.

    Images' embeddings are gathered from all ranks, each rank scores its own classes, and the losses are put together
    from maxima and sums over the ranks, which is exact. Scores are computed a chunk of classes at a time, on the way
    forward and again on the way back, so that no (N, C) matrix exists; with one rank that saves memory too. The weights
    start as those of the softmax head: the same random numbers, whatever the number of ranks.

    Source: the sharding of insightface's arcface_torch.

    Args:
        embedding_dim: D.
        num_classes: C.
        precision: of the inputs of matrix products; sums, scores and weights are fp32 in any case.

    Attributes:
        shard: the classes of this rank.
        weight: (K, D).

    Raises:
        ConfigError: a size below 1, or more ranks than classes.
    """

    def __init__(self, embedding_dim: int, num_classes: int, *, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        super().__init__()
        check_sizes(embedding_dim, num_classes)
        self.precision: Precision = precision
        self.shard = ClassShard.of_rank(num_classes)
        self.weight = nn.Parameter(_draw(self.shard, embedding_dim))

    def in_play(self, labels: Tensor, step: int) -> ClassesInPlay:
        """The classes that the images `labels` (N,) of all ranks are compared with in `step`: all of them."""
        return ClassesInPlay(None, None, self.shard.num_classes)

    def extra_repr(self) -> str:
        shard = self.shard
        return (
            f"embedding_dim={self.weight.shape[1]}, num_classes={shard.num_classes}, "
            f"classes {shard.start} to {shard.stop - 1} here, precision={self.precision}"
        )


@dataclass(frozen=True)
class ClassesInPlay:
    """The classes that take part in a step.

    classes: int64 (M,), those of this rank, ascending. rows: int64 (M,), their rows of the weights. Both are None where
    all of the rank's are in play. num_in_play: how many there are on all ranks.
    """

    classes: Tensor | None
    rows: Tensor | None
    num_in_play: int


class ChunkedCosines:
    """scale · cosine of N embeddings with the classes in play, a slice of them at a time, and the way back.

    Args:
        unit: (N, D), embeddings of length 1.
        weight: (K, D), class weights of any length.
        rows: int64 (M,), the rows in play; None for all.
        scale: s.
        precision: of the inputs of matrix products.
    """

    def __init__(self, unit: Tensor, weight: Tensor, rows: Tensor | None, scale: float, precision: Precision) -> None:
        self.unit = unit
        self.weight = weight
        self.rows = rows
        self.scale = scale
        self.precision: Precision = precision

    def __call__(self, columns: slice) -> Tensor:
        """The scores (N, c) of a slice of the classes in play: a new tensor, within ±s."""
        weights = self.weights(columns)
        scores = matmul(self.unit, weights.T, self.precision)
        return scores.mul_(_inverse_norm(weights) * self.scale).clamp_(-self.scale, self.scale)

    def of_each(self, index: Tensor) -> Tensor:
        """The cosine of each embedding with a class of its own, at `index` (N, 1) of those in play: (N, 1)."""
        rows = index.squeeze(1) if self.rows is None else self.rows[index.squeeze(1)]
        unit, weight = self.unit, self.weight[rows]
        if self.precision == "bf16":
            unit, weight = unit.bfloat16().to(unit.dtype), weight.bfloat16().to(weight.dtype)
        cosine = (unit * weight).sum(dim=1, keepdim=True) * _inverse_norm(self.weight[rows])[:, None]
        return cosine.clamp_(-1.0, 1.0)

    def weights(self, columns: slice) -> Tensor:
        """The weights (c, D) of a slice of the classes in play."""
        return self.weight[columns] if self.rows is None else self.weight[self.rows[columns]]

    def backward(self, columns: slice, scores: Tensor, grad_cosine: Tensor, grad_unit: Tensor, out: Tensor) -> None:
        """From the derivative by a slice's cosines (N, c) to those by its weights, and by the embeddings.

        With w = |w| ŵ and cos = e·ŵ: dw = (Σ_n g_n e_n - (Σ_n g_n cos_n) ŵ) / |w|, and de += Σ_j g_j ŵ_j.

        Args:
            scores: (N, c), with the targets; overwritten.
            grad_cosine: (N, c); overwritten.
            grad_unit: (N, D), added to.
            out: (c, D), overwritten with the derivative by the weights.
        """
        weights = self.weights(columns)
        inverse_norm = _inverse_norm(weights)
        along = scores.mul_(grad_cosine).sum(dim=0).mul_(inverse_norm).mul_(inverse_norm / self.scale)
        grad_cosine.mul_(inverse_norm)
        matmul(grad_cosine.T, self.unit, self.precision, out=out)
        out.addcmul_(weights, along[:, None], value=-1.0)
        grad_unit.add_(matmul(grad_cosine, weights, self.precision))


def _inverse_norm(weights: Tensor) -> Tensor:
    """1 / |w| of each row; 0 for one so short that it has no direction: its cosines are 0 and no gradient reaches it.

    Computed anew for every chunk, which costs little and keeps nothing.
    """
    norm = torch.linalg.vector_norm(weights, dim=1)
    return torch.where(norm > SHORTEST_NORM, norm.clamp_min(SHORTEST_NORM).reciprocal(), 0.0)


def _draw(shard: ClassShard, embedding_dim: int) -> Tensor:
    """This rank's rows of N(0, 0.01²) weights for all classes."""
    own = torch.empty(shard.size, embedding_dim)
    for start in range(0, shard.num_classes, _ROWS_DRAWN_AT_ONCE):
        stop = min(start + _ROWS_DRAWN_AT_ONCE, shard.num_classes)
        drawn = torch.empty(stop - start, embedding_dim)
        nn.init.normal_(drawn, std=WEIGHT_DEVIATION)
        low, high = max(start, shard.start), min(stop, shard.stop)
        if low < high:
            own[low - shard.start : high - shard.start] = drawn[low - start : high - start]
    return own
