"""Probabilities of many classes on the CPU, summed over images."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gkd.core.classes import compute_dtype

# fp32 sums of so many rows go into the fp64 sum at a time.
_ROWS_A_PART = 8


def row_powers(ranked: Tensor, temperature: float) -> Iterator[Tensor]:
    """softmax(row / temperature) times a number, the best being 1, for each row of `ranked` (N, C).

    All are views of one buffer: each is overwritten by the next.
    """
    powers = torch.empty(ranked.shape[1], dtype=compute_dtype(ranked))
    scale = math.log2(math.e) / temperature
    for row in ranked:
        exact = row.to(powers.dtype)
        # Powers of two are several times cheaper than those of e.
        yield torch.sub(exact, exact.amax(), out=powers).mul_(scale).exp2_()


def batch_masses(ranked: Tensor, temperature: float) -> Tensor:
    """Σ_n softmax(logits_n / temperature) of each class: float64 (C,)."""
    masses = torch.zeros(ranked.shape[1], dtype=torch.float64)
    part = torch.zeros(ranked.shape[1], dtype=compute_dtype(ranked))
    for index, powers in enumerate(row_powers(ranked, temperature), start=1):
        part.add_(powers, alpha=1 / powers.sum(dtype=torch.float64).item())
        if index % _ROWS_A_PART == 0 or index == len(ranked):
            masses += part
            part.zero_()
    return masses
