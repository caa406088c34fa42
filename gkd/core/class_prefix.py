"""How many of the greatest probabilities reach a given sum, among classes that lie on several ranks.

The smallest such number is found from histograms of counts and masses. Masses whose keys are equal (fp32 values in
`smallest_prefix`, logarithms within 2^-19 in `smallest_prefix_of_rows`) count as equal to their mean. So the result can
differ from that of a sort only where a cumulated mass is within 1e-6, relatively, of the sum that is due.

Shapes: N rows (images of all ranks), c classes of a chunk, K classes on this rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gkd.core.class_chunks import EXCLUDED
from gkd.core.class_selection import Sweep
from gkd.core.class_shard import ClassShard
from gkd.core.classes import row_chunks
from gkd.core.radix_select import NUM_BINS, SHIFTS, Descent, bin_sums, descend, order_keys

# A key is a logarithm between -32 and 0, in steps of 2^-27 of which the low byte is not looked at. What is less likely
# than e^-32 = 1.3e-14 has the lowest key: that of a million such classes is 1e-8.
_KEY_STEPS = 2.0**27
_KEY_OFFSET = 16.0
# A small range of values that holds the place is found by so many halvings of their logarithms.
_NUM_HALVINGS = 16


@torch.no_grad()
def smallest_prefix(masses: Tensor, due: Tensor, shard: ClassShard) -> Tensor:
    """The smallest k >= 1 such that the k greatest masses of all ranks sum to `due`; all of them where none does.

    On one rank from the masses themselves. Every rank must call it.

    Args:
        masses: fp64 (K,), of this rank's classes, each at least 0.
        due: fp64 (), above 0, equal on all ranks.
        shard: the ranks that take part.

    Returns:
        int64 (), equal on all ranks.
    """
    if shard.is_whole:
        if masses.device.type == "cpu":
            return torch.tensor(min(num_short(masses, due.item()) + 1, len(masses)))
        short = (masses.sort(descending=True).values.cumsum(dim=0) < due).sum()
        return (short + 1).clamp_max(len(masses))
    keys, weights = order_keys(masses.float()), [masses, torch.ones_like(masses[:1])]
    row = torch.zeros(1, dtype=torch.int64, device=masses.device)
    wanted = due.reshape(1)
    found = descend(lambda prefix, shift: bin_sums(keys, row, prefix, shift, weights), wanted, shard)
    return _num_reaching(found, wanted).squeeze(0)


def num_short(masses: Tensor, due: float) -> int:
    """How many k there are from 1 to C for which the k greatest of `masses` (C,), at least 0, sum to less than `due`.

    A few halvings find a small range of values that holds the place; only what lies in it is sorted.
    """
    if masses.sum(dtype=torch.float64).item() < due:
        return len(masses)
    low, high = masses.aminmax()
    lowest, greatest = -1.0, high.item()  # the masses above `lowest` suffice, those above `greatest` do not
    exponent_low, exponent_high = math.log2(max(low.item(), 1e-300)), math.log2(max(greatest, 1e-300))
    sum_above = 0.0
    for _ in range(_NUM_HALVINGS):
        middle = (exponent_low + exponent_high) / 2
        total = torch.threshold(masses, 2.0**middle, 0.0).sum(dtype=torch.float64).item()
        if total < due:
            exponent_high, greatest, sum_above = middle, 2.0**middle, total
        else:
            exponent_low, lowest = middle, 2.0**middle
    inside = masses[(masses > lowest).logical_and_(masses <= greatest)].sort(descending=True).values
    num_above = int(torch.count_nonzero(masses > greatest))
    reached = inside.cumsum(dim=0, dtype=torch.float64) + sum_above
    return num_above + int((reached < due).sum())


@torch.no_grad()
def smallest_prefix_of_rows(
    sweep: Sweep,
    log_normaliser: Tensor,
    inverse_temperature: float,
    threshold: float,
    target_probability: Tensor,
    shard: ClassShard,
) -> Tensor:
    """Each row's smallest k >= 1 such that its k greatest probabilities sum to `threshold`; all where none does.

    p = exp(score · inverse_temperature - log_normaliser), and the target, which is not in the sweep, counts like any
    other class. Every rank must call it. It takes three sweeps.

    Args:
        sweep: this rank's scores.
        log_normaliser: fp64 (N,), over all classes and the target.
        inverse_temperature: above 0.
        threshold: in (0, 1].
        target_probability: fp64 (N,), equal on all ranks.
        shard: the ranks that take part.

    Returns:
        int64 (N,), equal on all ranks.
    """

    def bins(prefix: Tensor, shift: int) -> Tensor:
        total = torch.zeros((2, len(prefix), NUM_BINS), dtype=torch.float64, device=prefix.device)
        if shard.start == 0:  # the target counts once, also where its probability is 0
            total += _mass_bins(target_probability.log().clamp_min(-1e4)[:, None], prefix, shift)
        for _, scores in sweep(1):
            for rows in row_chunks(scores):
                exponents = scores[rows].double().mul_(inverse_temperature).sub_(log_normaliser[rows, None])
                exponents.masked_fill_(scores[rows] <= EXCLUDED, -math.inf)
                total[:, rows] += _mass_bins(exponents, prefix[rows], shift)
        return total

    wanted = torch.full_like(log_normaliser, threshold)
    return _num_reaching(descend(bins, wanted, shard, SHIFTS[:3]), wanted)


def _mass_bins(log_masses: Tensor, prefix: Tensor, shift: int) -> Tensor:
    """Masses and numbers in each bin: fp64 (2, N, 256)."""
    keys = ((log_masses + _KEY_OFFSET) * _KEY_STEPS).clamp_(-(2.0**31), 2.0**31 - 1).int()
    rows = torch.arange(len(keys), device=keys.device)[:, None]
    return bin_sums(keys, rows, prefix, shift, [log_masses.exp(), (log_masses > -math.inf).double()])


def _num_reaching(found: Descent, wanted: Tensor) -> Tensor:
    """k of a descent by (masses, numbers), the masses of the last bin taken as equal: int64 (N,)."""
    mass, number = found.at
    share = ((wanted - found.above[0]) / mass.clamp_min(1e-300)).nan_to_num(1.0)
    num_at = torch.minimum((share * number).ceil().clamp_min(1), number)
    num_all = found.total[1]
    k = torch.where(found.total[0] < wanted, num_all, found.above[1] + num_at)
    return torch.minimum(k, num_all).clamp_min(1).long()
