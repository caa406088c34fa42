"""The k-th best entry of long rows, without sorting or selecting in a whole row.

A sample of each row says about where it lies. A pass over the row counts what lies above that guess, which gives a far
better one; after two or three passes the few entries around it are collected, and the wanted one is exactly one of
them. Where that fails, as chance or many equal entries have it, the whole row is searched. Counts are exact, so the
result is; a sample only makes it fast. All steps but the last are free of branches on single entries, which cost a
processor more than arithmetic does.
"""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

# About so many entries of a row go into its sample, or more, so that the wanted rank is about the second number there;
# but never more than one in the third number.
_SAMPLE_ENTRIES, _SAMPLE_RANK, _LEAST_STEP = 1300, 150, 8
# The wanted value is looked for so many standard deviations around the sample's mean, in a range halved so often.
_NUM_DEVIATIONS = 5.0
_NUM_HALVINGS = 11
# Guesses farther from the wanted rank than this are improved, so often at most.
_NEAR_RANKS = 200
_MOST_GUESSES = 4
# Entries j, j + C/16, j + 2C/16 ... form a block; blocks without an entry in the bracket are passed over.
_BLOCK = 16
# Below these, selecting in the whole row is as fast.
_FEWEST_ENTRIES = 2**13
_SMALLEST_RANK = 2**8


class Guess(NamedTuple):
    """About the wanted entry of a row, and how much entries differ there from one rank to the next (at least 0)."""

    value: float
    slope: float


def guess_kth_best(scores: Tensor, k: Tensor) -> list[Guess]:
    """A guess for each row of `scores` (N, C) at its rank `k`, float64 (N,), from a sample of the columns."""
    num_classes = scores.shape[1]
    rarest = min(k.min().item(), num_classes - k.max().item())
    num_wanted = max(_SAMPLE_ENTRIES, _SAMPLE_RANK * num_classes / max(rarest, 1.0))
    step = max(1, int(num_classes / min(num_wanted, num_classes / _LEAST_STEP)))
    sample = scores[:, step // 2 :: step].to(torch.promote_types(scores.dtype, torch.float32)).contiguous()
    to_sample = sample.shape[1] / num_classes
    spread = 0.1 * torch.minimum(k, num_classes - k)
    above, below = (_sample_quantile(sample, (k + offset) * to_sample) for offset in (-spread, spread))
    values, slopes = (above + below) / 2, (above - below) / (2 * spread).clamp_min(1.0)
    return [Guess(*pair) for pair in zip(values.tolist(), slopes.tolist(), strict=True)]


def _sample_quantile(sample: Tensor, rank: Tensor) -> Tensor:
    """A value of each row of `sample` that about `rank` of its entries reach, by halving the range: float64 (N,)."""
    deviation, mean = torch.std_mean(sample, dim=1, correction=0)
    low, high = mean - _NUM_DEVIATIONS * deviation, mean + _NUM_DEVIATIONS * deviation
    reached = torch.empty_like(sample)
    for _ in range(_NUM_HALVINGS):
        middle = torch.lerp(low, high, 0.5)
        is_low = torch.ge(sample, middle[:, None], out=reached).sum(dim=1) >= rank
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return low.double()


def kth_best_other(row: Tensor, target: float, k: int, guess: Guess, scratch: tuple[Tensor, Tensor]) -> float:
    """The k-th best entry of `row` once one entry equal to `target` is taken out; equal entries count one by one.

    Args:
        row: (C,) on the CPU, without NaN.
        target: the entry taken out.
        k: from 1 to C - 1.
        guess: about where to look; it changes the time, never the result.
        scratch: two like `row`; what they hold is overwritten.
    """
    num_entries = len(row)
    if num_entries >= _FEWEST_ENTRIES and _SMALLEST_RANK <= k <= num_entries - _SMALLEST_RANK:
        found = _search_around(row, target, k, guess, scratch)
        if found is not None:
            return found
    return _search_whole(row, target, k)


def _search_whole(row: Tensor, target: float, k: int) -> float:
    if k <= len(row) // 2:
        best = row.topk(k + 1, sorted=False).values
        next_best, kth = best.topk(2, largest=False).values.tolist()
    else:
        worst = row.topk(len(row) - k + 1, largest=False, sorted=False).values
        kth, next_best = worst.topk(2).values.tolist()
    result: float = next_best if target >= kth else kth
    return result


def _search_around(row: Tensor, target: float, k: int, guess: Guess, scratch: tuple[Tensor, Tensor]) -> float | None:
    above, other = scratch
    value = _rounded(guess.value, row.dtype)
    for _ in range(_MOST_GUESSES):
        torch.ge(row, value, out=above)
        missing = k - (count_of(above) - (target >= value))
        if abs(missing) <= _NEAR_RANKS:
            break
        value = _rounded(value - guess.slope * missing, row.dtype)
    else:
        return None
    reach = math.copysign(3 + 0.4 * abs(missing) + 3 * math.sqrt(abs(missing)), missing - 0.5)
    end = _rounded(value - guess.slope * (missing + reach), row.dtype)
    low, high = min(value, end), max(value, end)
    if not low < high:
        return None
    torch.ge(row, end, out=other)
    near = _entries_near(row, other.sub_(above) if missing > 0 else above.sub_(other))
    inside = near[(near >= low).logical_and_(near < high)]
    if low <= target < high:
        inside = _without(inside, target)
    rank = missing if missing > 0 else len(inside) + missing
    if not 1 <= rank <= len(inside):
        return None
    result: float = inside.kthvalue(len(inside) - rank + 1).values.item()
    return result


def _rounded(value: float, dtype: torch.dtype) -> float:
    """`value` as a tensor of this type would hold it, so that comparisons here and there agree."""
    return value if dtype == torch.float64 or not math.isfinite(value) else ctypes.c_float(value).value


def count_of(mask: Tensor) -> int:
    """How many entries of a floating-point 0/1 `mask` are 1."""
    # fp32 is exact to 2^24.
    return int(mask.sum() if len(mask) < 2**24 else mask.sum(dtype=torch.float64))


def _entries_near(row: Tensor, between: Tensor) -> Tensor:
    """All entries of the blocks that have one marked in `between`."""
    width = len(row) // _BLOCK
    whole = width * _BLOCK
    columns = between[:whole].view(_BLOCK, width).sum(dim=0).nonzero().view(-1)
    entries = row[:whole].view(_BLOCK, width).index_select(1, columns).view(-1)
    return torch.cat((entries, row[whole:]))


def _without(entries: Tensor, value: float) -> Tensor:
    place = int((entries == value).nonzero()[0])
    return torch.cat((entries[:place], entries[place + 1 :]))
