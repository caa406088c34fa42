"""Exact selection among class scores that come chunk by chunk and lie on several ranks: never held whole, never sorted.

Shapes: N rows (images of all ranks), C classes, c classes of a chunk, K numbers on this rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd.core import distributed
from gkd.core.class_shard import ClassShard
from gkd.core.classes import row_chunks
from gkd.core.radix_select import NUM_BINS, SHIFTS, Descent, bin_sums, descend, order_keys, values_of_keys

# Called with a stride s, it yields this rank's chunks, ascending: classes int64 (c,) and scores fp32 (N, c); of every
# chunk only the columns [::s]. With stride 1 every call yields the same bits. It must not speak to other ranks, and
# must leave the tensors it has yielded as they are.
Sweep = Callable[[int], Iterator[tuple[Tensor, Tensor]]]

_SAMPLE_SHARE = 16  # a sample holds one class in so many,
_MIN_SAMPLE, _MAX_SAMPLE = 4096, 32_768  # but between so many classes a rank
_MAX_CANDIDATE_SHARE = 8  # more than one entry in so many are not kept
_HALF_BITS = 16
_CPU_ENTRIES, _GPU_ENTRIES = 2**13, 2**24  # of the sample, and of the candidates, that are worked on at once
_LOG_MISS = 8.0  # -log of the probability that one side of a row's bracket misses


@dataclass(frozen=True)
class Cutoff:
    """The last of each row's best entries: by score descending, then by class ascending.

    Args:
        value: fp32 (N, 1), its score; +inf where nothing is selected.
        last_class: int64 (N, 1), of the entries with that score, the highest class that is selected. It may be this
            rank's own: -1 where none of its ties is, the number of classes where all are.
    """

    value: Tensor
    last_class: Tensor


@torch.no_grad()
def best_classes(sweep: Sweep, counts: Tensor, num_scored: int, shard: ClassShard) -> Cutoff:
    """The cut-off of each row's best entries over the chunks of all ranks. Every rank must call it.

    A sample of the classes brackets the cut-off, one sweep counts what lies above the bracket and keeps what lies in
    it, and a descent over the kept finds the cut-off exactly. Where a bracket missed or holds too much (many equal
    scores), four sweeps of histograms and one more for ties find it instead; the result is the same.

    Args:
        sweep: this rank's scores.
        counts: int64 (N,), how many entries to select, over all ranks: from 0 to the number of non-excluded ones.
        num_scored: how many classes the sweeps of all ranks hold.
        shard: the ranks that take part; their classes ascend with the rank.
    """
    share = -(-num_scored // (1 if shard.is_whole else distributed.world_size()))
    stride = share // min(max(share // _SAMPLE_SHARE, _MIN_SAMPLE), _MAX_SAMPLE)
    if stride <= 1:
        chunks = list(sweep(1))
        return _by_histograms(lambda _: iter(chunks), counts, shard)
    low, high = _bracket(sweep, stride, counts, num_scored, shard)
    candidates = _Candidates.of(sweep, low, high, len(counts) * share // _MAX_CANDIDATE_SHARE)
    above = candidates.shared_above(counts, shard)
    if above is None:
        return _by_histograms(sweep, counts, shard)
    found = descend(candidates.bins, (counts - above).clamp_min(1), shard)
    return _cutoff(found, counts, counts - above, lambda keys, nth: _nth_tie(sweep, keys, nth), shard)


def _by_histograms(sweep: Sweep, counts: Tensor, shard: ClassShard) -> Cutoff:
    def bins(prefix: Tensor, shift: int) -> Tensor:
        total = torch.zeros((1, len(prefix), NUM_BINS), dtype=torch.int64, device=prefix.device)
        for _, scores in sweep(1):
            total += _count_bins(scores, prefix, shift)
        return total

    found = descend(bins, counts.clamp_min(1), shard)
    return _cutoff(found, counts, counts, lambda keys, nth: _nth_tie(sweep, keys, nth), shard)


def _count_bins(scores: Tensor, prefix: Tensor, shift: int) -> Tensor:
    """The numbers of `scores` (N, c) in each bin: int64 (1, N, 256)."""
    one = torch.ones(1, dtype=torch.int64, device=scores.device)
    numbers = torch.arange(len(scores), device=scores.device)[:, None]
    parts = [
        bin_sums(order_keys(scores[rows]), numbers[: len(scores[rows])], prefix[rows], shift, [one])
        for rows in row_chunks(scores)
    ]
    return torch.cat(parts, dim=1)


def _bracket(sweep: Sweep, stride: int, counts: Tensor, num_scored: int, shard: ClassShard) -> tuple[Tensor, Tensor]:
    """Scores (N, 1) and (N, 1) between which each row's cut-off lies, but for a chance of about e^-8 a side.

    Of the x entries of the sample that should lie above the cut-off, Bernstein's inequality bounds how many do.
    """
    # The upper halves of the keys: half the memory, and bounds of a bracket need be no sharper.
    parts = [(order_keys(scores) >> _HALF_BITS).to(torch.int16) for _, scores in sweep(stride)]
    sample = torch.cat([counts.new_zeros((len(counts), 0), dtype=torch.int16), *parts], dim=1)
    del parts
    num_sampled = shard.sum(counts.new_tensor(sample.shape[1]))
    share = num_sampled.double() / num_scored
    expected = counts * share
    variance = expected * (1 - counts.double() / num_scored) * (1 - share)
    margin = _LOG_MISS / 3 + (_LOG_MISS**2 / 9 + 2 * _LOG_MISS * variance).sqrt()
    ranks = (expected + margin).ceil().long() + 1, (expected - margin).floor().long()
    low, high = (_kth_of_sample(sample, rank.clamp_min(1), shard) for rank in ranks)
    low, high = values_of_keys(low << _HALF_BITS), values_of_keys((high << _HALF_BITS) | (2**_HALF_BITS - 1))
    low = low.masked_fill(ranks[0] > num_sampled, -math.inf).masked_fill(counts == 0, math.inf)
    return low[:, None], high.masked_fill(ranks[1] < 1, math.inf)[:, None]


def _kth_of_sample(sample: Tensor, rank: Tensor, shard: ClassShard) -> Tensor:
    """The upper halves of the keys of each row's rank-th best."""

    def bins(prefix: Tensor, shift: int) -> Tensor:
        one = torch.ones(1, dtype=torch.int64, device=sample.device)
        parts = []
        step = max(1, _entries_at_once(sample) // max(1, sample.shape[1]))
        for some, fixed in zip(torch.split(sample, step), torch.split(prefix, step), strict=True):
            row_numbers = torch.arange(len(some), device=some.device)[:, None]
            parts.append(bin_sums(some.int() << _HALF_BITS, row_numbers, fixed, shift, [one]))
        return torch.cat(parts, dim=1)

    return descend(bins, rank, shard, SHIFTS[:2]).keys


def _entries_at_once(like: Tensor) -> int:
    return _CPU_ENTRIES if like.device.type == "cpu" else _GPU_ENTRIES


@dataclass(frozen=True)
class _Candidates:
    """This rank's entries in the brackets.

    above: int64 (N,), how many entries are above the brackets. keys: of each chunk int32, those in the brackets, row by
    row. counts: of each chunk int32 (N,), how many of them each row has. With too many none are kept.
    """

    above: Tensor
    keys: list[Tensor]
    counts: list[Tensor]
    is_complete: bool

    @classmethod
    def of(cls, sweep: Sweep, low: Tensor, high: Tensor, limit: int) -> _Candidates:
        above = torch.zeros(len(low), dtype=torch.int64, device=low.device)
        keys: list[Tensor] = []
        counts: list[Tensor] = []
        num_kept = 0
        for _, scores in sweep(1):
            # Masks are numbers: comparing into floats is far faster on a CPU.
            is_above = torch.gt(scores, high, out=torch.empty_like(scores))
            inside = torch.ge(scores, low, out=torch.empty_like(scores)).sub_(is_above)
            above += is_above.sum(dim=1).long()
            places = inside.view(-1).nonzero().squeeze(1)
            num_kept += len(places)
            if num_kept > limit:
                return cls(above, [], [], is_complete=False)
            keys.append(order_keys(scores.reshape(-1)[places]))
            counts.append(inside.sum(dim=1).int())
        return cls(above, keys, counts, is_complete=True)

    def shared_above(self, counts: Tensor, shard: ClassShard) -> Tensor | None:
        """How many entries of all ranks lie above each bracket; None, on all ranks, where a bracket is of no use."""
        inside = sum(self.counts, torch.zeros_like(counts))
        is_incomplete = counts.new_tensor([not self.is_complete])
        shared = shard.sum(torch.cat([self.above, inside, is_incomplete]))
        above, inside = shared[: len(counts)], shared[len(counts) : -1]
        is_hit = (above < counts) & (counts <= above + inside) | (counts == 0)
        return above if bool(is_hit.all() & (shared[-1] == 0)) else None

    def bins(self, prefix: Tensor, shift: int) -> Tensor:
        """The numbers of candidates in each bin: int64 (1, N, 256)."""
        total = torch.zeros((1, len(prefix), NUM_BINS), dtype=torch.int64, device=prefix.device)
        one, row_numbers = torch.ones_like(total[0, 0, :1]), torch.arange(len(prefix), device=prefix.device)
        for start, stop in self._some_together():
            keys, counts = torch.cat(self.keys[start:stop]), torch.cat(self.counts[start:stop])
            rows = row_numbers.repeat(stop - start).repeat_interleave(counts)
            total += bin_sums(keys, rows, prefix, shift, [one])
        return total

    def _some_together(self) -> Iterator[tuple[int, int]]:
        """Borders of runs of chunks that hold some thousand candidates, so that little memory is needed for each."""
        start, num = 0, 0
        for index, keys in enumerate(self.keys):
            num += len(keys)
            if num > _entries_at_once(keys) or index + 1 == len(self.keys):
                yield start, index + 1
                start, num = index + 1, 0


def _cutoff(
    found: Descent, counts: Tensor, wanted: Tensor, nth_tie: Callable[[Tensor, Tensor], Tensor], shard: ClassShard
) -> Cutoff:
    """The cut-off at the keys `found`; the room for ties goes to the ranks of the lower classes first."""
    own_ties = found.own_at[0]
    room = wanted - found.above[0] - shard.exclusive_sum(own_ties)
    own_room = torch.minimum(room.clamp_min(0), own_ties)
    last_class = torch.full_like(counts, -1).masked_fill(own_room == own_ties, shard.num_classes)
    is_split = (own_room > 0) & (own_room < own_ties)
    if bool(is_split.any()):
        last_class = torch.where(is_split, nth_tie(found.keys, own_room), last_class)
    value = values_of_keys(found.keys).masked_fill(counts == 0, math.inf)
    return Cutoff(value[:, None], last_class.masked_fill(counts == 0, -1)[:, None])


def _nth_tie(sweep: Sweep, keys: Tensor, nth: Tensor) -> Tensor:
    """The class of the nth (N,) entry of each row, from 1, that has the row's key; -1 where there is none."""
    num_seen = torch.zeros_like(nth)[:, None]
    found = torch.full_like(nth, -1)
    for classes, scores in sweep(1):
        for rows in row_chunks(scores):
            is_tie = order_keys(scores[rows]) == keys[rows, None]
            place = is_tie.cumsum(dim=1) + num_seen[rows]
            is_nth = is_tie.logical_and_(place == nth[rows, None])
            num_seen[rows] = place[:, -1:]
            found[rows] = torch.maximum(found[rows], torch.where(is_nth, classes, -1).amax(dim=1))
    return found
