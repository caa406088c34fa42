"""Spreading groups over batches: nothing lost, and no identity twice where possible."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.data.sampling.order import Int64s, generator
from gkd.data.sampling.spread import count_doubles, spread


def _owners(counts: list[int]) -> Int64s:
    return np.repeat(np.arange(len(counts)), counts)


def _num_doubles(owners: Int64s, order: Int64s, groups_per_batch: int) -> int:
    total = 0
    for start in range(0, len(order) - groups_per_batch + 1, groups_per_batch):
        batch = owners[order[start : start + groups_per_batch]].tolist()
        total += len(batch) - len(set(batch))
    return total


def _fewest_doubles(counts: list[int], groups_per_batch: int) -> int:
    """By pigeonholes: of T batches, each identity can fill T; what is above fills up the batches, or is dropped."""
    num_batches, num_dropped = divmod(sum(counts), groups_per_batch)
    return max(0, sum(max(0, count - num_batches) for count in counts) - num_dropped)


@settings(deadline=None, max_examples=150)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=25), data=st.data(), seed=st.integers(0, 99))
def test_as_few_doubles_as_there_can_be(counts: list[int], data: st.DataObject, seed: int) -> None:
    owners = _owners(counts)
    groups_per_batch = data.draw(st.integers(1, len(owners)))
    order = spread(owners, groups_per_batch, generator(seed, 0))
    assert sorted(order.tolist()) == list(range(len(owners)))
    assert _num_doubles(owners, order, groups_per_batch) == _fewest_doubles(counts, groups_per_batch)


@pytest.mark.parametrize(
    ("counts", "groups_per_batch"),
    [([40] * 16, 16), ([40] * 20, 16), ([5] * 4000, 64), ([90] * 300, 256), ([30] + [1] * 300, 11)],
)
def test_tight_cases_and_common_ones(counts: list[int], groups_per_batch: int) -> None:
    owners = _owners(counts)
    order = spread(owners, groups_per_batch, generator(1, 0))
    assert sorted(order.tolist()) == list(range(len(owners)))
    assert _num_doubles(owners, order, groups_per_batch) == _fewest_doubles(counts, groups_per_batch) == 0


def test_doubles_are_spread_evenly_where_they_must_be() -> None:
    owners = _owners([10] * 8)
    order = spread(owners, 16, generator(1, 0))
    for batch in owners[order].reshape(5, 16):
        assert set(Counter(batch.tolist()).values()) == {2}


# A crowded identity (the last, with more groups than there are batches) takes the way of the sorted deal.
_WAYS = pytest.mark.parametrize(
    ("counts", "groups_per_batch"), [([8] * 500, 20), ([10] * 400, 40), ([8] * 500 + [300], 20)]
)


@_WAYS
def test_the_groups_of_an_identity_lie_all_over_the_epoch(counts: list[int], groups_per_batch: int) -> None:
    """Their places are random in 0 to 1: a mean of one half, with the deviation of a mean of uniform numbers."""
    owners = _owners(counts)
    order = spread(owners, groups_per_batch, generator(1, 0))
    place = np.empty(len(order))
    place[order] = np.arange(len(order)) / len(order)
    means = np.bincount(owners, place)[:400] / counts[0]
    assert abs(means.mean() - 0.5) < 0.01
    assert 0.85 < means.std() * np.sqrt(12 * counts[0]) < 1.15


@_WAYS
def test_identities_meet_as_often_as_by_chance(counts: list[int], groups_per_batch: int) -> None:
    owners = _owners(counts)
    num_batches = len(owners) // groups_per_batch
    batches = owners[spread(owners, groups_per_batch, generator(1, 0))[: num_batches * groups_per_batch]]
    is_in = np.zeros((num_batches, len(counts)))
    is_in[np.arange(num_batches)[:, None], batches.reshape(num_batches, -1)] = 1
    meetings = (is_in.T @ is_in)[:400, :400][np.triu_indices(400, 1)]
    expected = counts[0] ** 2 / num_batches
    assert abs(meetings.mean() / expected - 1) < 0.1
    assert 0.85 < meetings.std() / np.sqrt(expected) < 1.15


def test_every_part_of_a_batch_sees_every_identity() -> None:
    """Ranks take parts of a batch: none may always get the same identities."""
    owners = _owners([40] * 16)
    batches = owners[spread(owners, 16, generator(1, 0))].reshape(40, 16)
    first_halves = Counter(batches[:, :8].ravel().tolist())
    assert min(first_halves.values()) > 8
    assert max(first_halves.values()) < 32


def test_count_doubles() -> None:
    owners = np.array([0, 0, 1, 2, 2, 2])
    assert count_doubles(np.array([[0, 1, 2], [3, 4, 5], [0, 2, 3]]), owners).tolist() == [1, 2, 0]
