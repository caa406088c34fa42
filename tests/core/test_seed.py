"""Orders and draws depend on the numbers that name them, and on nothing else."""

import numpy as np
import pytest

from gkd.core.seed import permutation, uniform

PERMUTATION = [5, 4, 7, 1, 2, 6, 0, 3]
UNIFORM = 0.7072586109093507


def reference_uniform(sample_id, seed, epoch, stream):
    """SplitMix64's finaliser over each key in turn, with Python's unbounded integers."""
    mask, state = 2**64 - 1, 0
    for key in (seed, epoch, stream, sample_id):
        value = (state + key + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        state = value ^ (value >> 31)
    return (state >> 11) / 2**53


def test_uniform_equals_the_reference():
    ids = np.array([0, 1, 2, 5_822_652, 42_474_556])
    expected = [reference_uniform(int(i), 1024, 3, 7) for i in ids]
    assert uniform(ids, 1024, 3, 7).tolist() == expected


def test_uniform_does_not_depend_on_company():
    ids = np.arange(1000)
    whole = uniform(ids, 5, 2)
    assert np.array_equal(uniform(ids[::-1], 5, 2), whole[::-1])
    assert uniform(ids[17:18], 5, 2)[0] == whole[17]


@pytest.mark.parametrize("change", [(6, 2, 0), (5, 3, 0), (5, 2, 1)])
def test_uniform_changes_with_every_key(change):
    ids = np.arange(1000)
    assert abs(np.corrcoef(uniform(ids, 5, 2, 0), uniform(ids, *change))[0, 1]) < 0.1


def test_uniform_is_uniform():
    draws = uniform(np.arange(100_000), 1, 0)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005
    assert abs(draws.std() - 12**-0.5) < 0.005


def test_a_permutation_visits_everything_once_and_differs_by_epoch_and_seed():
    first = permutation(1000, 1024, 0)
    assert sorted(first) == list(range(1000))
    assert np.array_equal(first, permutation(1000, 1024, 0))
    assert not np.array_equal(first, permutation(1000, 1024, 1))
    assert not np.array_equal(first, permutation(1000, 1025, 0))


def test_the_order_of_a_seed_stays():
    """A change here would break the continuation of every run that is under way."""
    assert permutation(8, 1024, 3).tolist() == PERMUTATION
    assert uniform(np.array([12345]), 1024, 3)[0] == UNIFORM
