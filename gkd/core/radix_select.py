"""Selection among numbers spread over ranks, from histograms of their bits: nothing is sorted, gathered or exchanged.

Each number has an int32 *key* of the same order. A descent fixes eight bits of each row's key at a time: it counts (or
weighs) the keys that share the bits fixed so far in 256 bins, sums the bins over the ranks, and enters the bin in which
the wanted amount, taken from the greatest key down, is reached.

Shapes: N rows; Q quantities a bin holds, the first of which is weighed against what is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd.core.class_shard import ClassShard

NUM_BINS = 256
_BIN_BITS = 8
_TOP_SHIFT = 24
SHIFTS = (24, 16, 8, 0)

# (prefix int32 (N,), shift) -> this rank's bins (Q, N, 256) of the keys whose bits above shift + 8 are the prefix.
Bins = Callable[[Tensor, int], Tensor]


def order_keys(values: Tensor) -> Tensor:
    """int32 keys in the order of fp32 `values`; -0.0 and +0.0 have one key, NaN has some key."""
    return _flip_negative((values + 0.0).view(torch.int32))


def values_of_keys(keys: Tensor) -> Tensor:
    """The fp32 values of `order_keys`."""
    return _flip_negative(keys).view(torch.float32)


def _flip_negative(bits: Tensor) -> Tensor:
    # The bits of negative floats ascend as the numbers descend.
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def bin_sums(keys: Tensor, rows: Tensor, prefix: Tensor, shift: int, weights: list[Tensor]) -> Tensor:
    """Sums of `weights` in the bins of each row: (Q, N, 256) of the weights' type.

    Args:
        keys: int32, of any shape.
        rows: int64, the row of each key; broadcast against `keys`.
        prefix: int32 (N,), the bits of each row's key above shift + 8; not looked at where shift is 24.
        shift: how many bits lie below the bin's.
        weights: Q tensors of one type, each of as many entries as `keys`, or of one entry.
    """
    index = _bin_index(keys, rows, prefix, shift).reshape(-1)
    bins = torch.zeros((len(weights), len(prefix) * NUM_BINS + 1), dtype=weights[0].dtype, device=keys.device)
    for quantity, weight in zip(bins, weights, strict=True):
        quantity.scatter_add_(0, index, weight.reshape(-1).expand(len(index)))
    return bins[:, :-1].view(len(weights), len(prefix), NUM_BINS)


def _bin_index(keys: Tensor, rows: Tensor, prefix: Tensor, shift: int) -> Tensor:
    """Each key's place in the flat bins; one place more, the last, takes the keys outside their row's prefix."""
    first = rows * NUM_BINS
    if shift == _TOP_SHIFT:
        return first + ((keys >> shift) + NUM_BINS // 2)
    is_within = (keys >> (shift + _BIN_BITS)) == prefix[rows]
    return torch.where(is_within, first + ((keys >> shift) & (NUM_BINS - 1)), len(prefix) * NUM_BINS)


@dataclass(frozen=True)
class Descent:
    """Where each row's wanted amount is reached.

    Args:
        keys: int32 (N,), the key (its bits above the last shift) at which the amount is reached.
        above: (Q, N), all ranks' quantities of greater keys.
        at: (Q, N), all ranks' quantities of the keys of that bin.
        own_at: (Q, N), this rank's share of `at`.
        total: (Q, N), all ranks' quantities of all keys.
    """

    keys: Tensor
    above: Tensor
    at: Tensor
    own_at: Tensor
    total: Tensor


def descend(bins: Bins, wanted: Tensor, shard: ClassShard, shifts: tuple[int, ...] = SHIFTS) -> Descent:
    """Find the greatest key of each row at which the first quantity, summed from the greatest key down, is `wanted`.

    Where the whole row holds less, that is its least key. Every rank must call this; one all-reduce a shift.

    Args:
        bins: this rank's bins; called once for each of `shifts`.
        wanted: (N,), above 0, equal on all ranks, of the bins' type.
        shard: the ranks that take part.
        shifts: from 24 down in steps of 8; fewer than four leave the low bits of the keys out.
    """
    prefix = torch.zeros(len(wanted), dtype=torch.int32, device=wanted.device)
    above = wanted.new_zeros((1, len(wanted)))
    places = torch.arange(NUM_BINS, device=wanted.device)
    for shift in shifts:
        own = bins(prefix, shift)
        sums = shard.sum(own.clone())
        if shift == shifts[0]:
            total = sums.sum(dim=2)
        chosen = _reaching_bin(sums, wanted - above[0])
        above = above + (sums * (places > chosen[:, None])).sum(dim=2)
        prefix = prefix * NUM_BINS + chosen.int() - (NUM_BINS // 2 if shift == _TOP_SHIFT else 0)
    index = chosen[None, :, None].expand(len(sums), -1, 1)
    at, own_at = (table.gather(2, index).squeeze(2) for table in (sums, own))
    return Descent(prefix, above, at, own_at, total)


def _reaching_bin(bins: Tensor, wanted: Tensor) -> Tensor:
    """The greatest bin of each row that, with all above it, holds `wanted`; else the least that is not empty."""
    descending = bins.flip(2)
    num_short = (descending[0].cumsum(dim=1) < wanted[:, None]).sum(dim=1)
    places = torch.arange(NUM_BINS, device=bins.device)
    # A sum of floats, taken bin by bin, may fall short of what it was as a whole by a rounding.
    last_filled = ((descending[-1] > 0) * places).amax(dim=1)
    return NUM_BINS - 1 - torch.minimum(num_short, last_filled)
