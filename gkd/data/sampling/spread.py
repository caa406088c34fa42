"""Puts groups into batches so that no batch holds an identity twice where that is possible at all.

T batches of m groups can hold an identity's groups apart if there are at most T of them. Groups are first dealt out at
random. A batch with a double then trades with another batch drawn at random: the groups of both are sorted by identity
and dealt out in turn, which parts every double that the two can part, and never makes a new one. Where that does not
end soon (identities with nearly T groups, or more), the groups are sorted by identity and dealt out in turn over all T
batches, which is the best possible, and random trades between all batches mix them up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.data.sampling.order import Int64s

_MAX_TRADES = 32
_NUM_MIXING_TRADES = 8
_GROUPS_AT_ONCE = 1 << 20


def spread(owners: Int64s, groups_per_batch: int, random: np.random.Generator) -> Int64s:
    """An order of the groups: `groups_per_batch` at a time are a batch; what fills no batch comes last.

    Args:
        owners: the identity of each group, (G,).
        groups_per_batch: m.
    """
    num_batches = len(owners) // groups_per_batch
    stop = num_batches * groups_per_batch
    order = _surplus_last(random.permutation(len(owners)), owners, num_batches)
    batches = order[:stop].reshape(num_batches, groups_per_batch)  # a view
    if num_surplus(owners[order[:stop]], num_batches) or not _part_doubles(batches, owners, random):
        _deal_in_turn(batches, owners, random)
    random.permuted(batches, axis=1, out=batches)  # trades sort a batch, but ranks take parts of it
    return order


def num_surplus(owners: Int64s, num_batches: int) -> int:
    """How many groups cannot but share a batch with one of the same identity."""
    counts = np.bincount(owners)
    return int(np.maximum(counts - num_batches, 0).sum())


def count_doubles(batches: Int64s, owners: Int64s) -> Int64s:
    """In each batch of `batches` (T, m), the groups whose identity has another group there before, (T,)."""
    doubles = np.zeros(len(batches), dtype=np.int64)
    rows_at_once = max(1, _GROUPS_AT_ONCE // batches.shape[1])
    for start in range(0, len(batches), rows_at_once):
        rows = slice(start, start + rows_at_once)
        present = np.sort(owners[batches[rows]], axis=1)
        doubles[rows] = (present[:, 1:] == present[:, :-1]).sum(axis=1)
    return doubles


def _surplus_last(order: Int64s, owners: Int64s, num_batches: int) -> Int64s:
    """Leaves the surplus for the end of the order, which may be dropped."""
    if not num_surplus(owners, num_batches):
        return order
    by_owner = np.argsort(owners[order], kind="stable")
    sorted_owners = owners[order][by_owner]
    first_places = np.searchsorted(sorted_owners, sorted_owners)
    is_surplus = np.empty(len(order), dtype=np.bool_)
    is_surplus[by_owner] = np.arange(len(order)) - first_places >= num_batches
    return np.concatenate([order[~is_surplus], order[is_surplus]])


def _part_doubles(batches: Int64s, owners: Int64s, random: np.random.Generator) -> bool:
    doubles = count_doubles(batches, owners)
    for _ in range(_MAX_TRADES):
        if not doubles.any():
            return True
        left, right = _pair_up(doubles > 0, random)
        _trade(batches, owners, left, right, random)
        for rows in (left, right):
            doubles[rows] = count_doubles(batches[rows], owners)
    return not doubles.any()


def _pair_up(is_in_need: npt.NDArray[np.bool_], random: np.random.Generator) -> tuple[Int64s, Int64s]:
    """Pairs of different batches: each in need with one that is not; if most are in need, all at random."""
    shuffled = random.permutation(len(is_in_need))
    needy, others = shuffled[is_in_need[shuffled]], shuffled[~is_in_need[shuffled]]
    if len(needy) <= len(others):
        return needy, others[: len(needy)]
    half = len(shuffled) // 2
    return shuffled[:half], shuffled[half : 2 * half]


def _trade(batches: Int64s, owners: Int64s, left: Int64s, right: Int64s, random: np.random.Generator) -> None:
    """Deal the groups of batch left[i] and batch right[i] out anew between the two, in turn by identity."""
    key = _shuffling_key(random)
    rows_at_once = max(1, _GROUPS_AT_ONCE // (2 * batches.shape[1]))
    for start in range(0, len(left), rows_at_once):
        rows = slice(start, start + rows_at_once)
        both = np.concatenate([batches[left[rows]], batches[right[rows]]], axis=1)
        dealt = np.take_along_axis(both, np.argsort(key(owners[both]), axis=1, kind="stable"), axis=1)
        batches[left[rows]], batches[right[rows]] = dealt[:, 0::2], dealt[:, 1::2]


def _deal_in_turn(batches: Int64s, owners: Int64s, random: np.random.Generator) -> None:
    groups = batches.ravel()
    groups = groups[np.argsort(_shuffling_key(random)(owners[groups]), kind="stable")]
    batches[:] = groups.reshape(batches.shape[1], len(batches)).T
    everyone = np.ones(len(batches), dtype=np.bool_)
    for _ in range(_NUM_MIXING_TRADES):
        _trade(batches, owners, *_pair_up(everyone, random), random)


def _shuffling_key(random: np.random.Generator) -> Any:
    """Maps identities one to one to 32-bit numbers, whose order is another one for each key."""
    factor = np.uint32(random.integers(1 << 31) * 2 + 1)  # odd, hence one to one
    return lambda owners: owners.astype(np.uint32) * factor
