"""The share of the classes that one rank holds, and sums over the shares of all ranks.

Shapes: N images, C classes in all, K classes on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from gkd.core import distributed
from gkd.core.errors import ConfigError


@dataclass(frozen=True)
class ClassShard:
    """The classes [start, stop) of `num_classes`, which are this rank's; the ranks of `group` hold the others in order.

    Source: the rule of insightface's arcface_torch: C // W classes a rank, and one more on each of the first C % W.
    """

    num_classes: int
    start: int
    stop: int
    group: ProcessGroup | None = None

    @classmethod
    def of_rank(cls, num_classes: int, rank: int | None = None, num_ranks: int | None = None) -> Self:
        """The share of `rank` of `num_ranks`; where they are not given, of this process among all.

        Raises:
            ConfigError: there are more ranks than classes, so that a rank would have none.
        """
        rank = distributed.rank() if rank is None else rank
        num_ranks = distributed.world_size() if num_ranks is None else num_ranks
        if num_ranks > num_classes:
            raise ConfigError(
                f"{num_classes} classes cannot be shared out among {num_ranks} ranks; use at most {num_classes} ranks, "
                "or head.name=softmax, which keeps every class on every rank"
            )
        share, rest = divmod(num_classes, num_ranks)
        start = share * rank + min(rank, rest)
        return cls(num_classes, start, start + share + (rank < rest))

    @property
    def size(self) -> int:
        """K, the number of classes on this rank."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether this rank holds every class, so that nothing need be said to others."""
        return self.size == self.num_classes

    def holds(self, labels: Tensor) -> Tensor:
        """Which of `labels` (N,) are this rank's classes: bool (N,)."""
        return (labels >= self.start) & (labels < self.stop)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over the ranks, in place; returns it."""
        return tensor if self.is_whole else distributed.all_reduce_sum(tensor, self.group)

    def max(self, tensor: Tensor) -> Tensor:
        """The greatest of `tensor` over the ranks, in place; returns it."""
        return tensor if self.is_whole else distributed.all_reduce_max(tensor, self.group)

    def log_sum_exp(self, own: Tensor) -> Tensor:
        """log Σ_ranks exp(own), for log-sum-exps over this rank's classes (…); -inf stands for an empty sum.

        By a maximum and a sum over the ranks; float64 for float64.
        """
        if self.is_whole:
            return own
        best = self.max(own.clone())
        shift = best.masked_fill(best.isneginf(), 0.0)
        return shift + self.sum((own - shift).exp()).log()

    def exclusive_sum(self, counts: Tensor) -> Tensor:
        """The sum of int64 `counts` over the ranks before this one, which hold the lower classes; a new tensor."""
        if self.is_whole:
            return torch.zeros_like(counts)
        rank, num_ranks = distributed.rank(), distributed.world_size()
        table = torch.zeros((num_ranks, *counts.shape), dtype=counts.dtype, device=counts.device)
        table[rank] = counts
        before: Tensor = distributed.all_reduce_sum(table, self.group)[:rank].sum(dim=0)
        return before
