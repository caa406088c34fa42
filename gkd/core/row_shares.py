"""The images of a micro-batch over the ranks: each has some of the N rows, in rank order."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from gkd.core import distributed


@dataclass(frozen=True)
class RowShares:
    """How many rows each rank has.

    Attributes:
        counts: rows of each rank.
        rank: this one's number.
    """

    counts: tuple[int, ...]
    rank: int

    @classmethod
    def of_own(cls, num_rows: int) -> RowShares:
        """Ask every rank for its number of rows; collective. Numbers travel between CPUs, so no GPU waits."""
        if distributed.world_size() == 1:
            return cls((num_rows,), 0)
        counts = torch.zeros(distributed.world_size(), dtype=torch.int64)
        counts[distributed.rank()] = num_rows
        return cls(tuple(distributed.all_reduce_sum(counts).tolist()), distributed.rank())

    @property
    def own(self) -> slice:
        """This rank's rows among all."""
        stop = list(accumulate(self.counts))[self.rank]
        return slice(stop - self.counts[self.rank], stop)

    def gather(self, own: Tensor) -> Tensor:
        """The rows (N, …) of all ranks, from this one's (n, …)."""
        if len(self.counts) == 1:
            return own
        longest = max(self.counts)
        padded = own.new_zeros((longest, *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def sum(self, rows: Tensor) -> Tensor:
        """This rank's rows (n, …) of the sum over the ranks of (N, …), which is overwritten."""
        return distributed.all_reduce_sum(rows)[self.own] if len(self.counts) > 1 else rows
