"""What a resample keeps, how often pairs and persons are drawn, and which persons are refused."""

from __future__ import annotations

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation.resampling import IdentityResampling, PairResampling

FOLDS = np.repeat(np.arange(4), [6, 6, 5, 5])
IS_SAME = np.array([True, True, False, False, False, True] * 3 + [True, False, False, False])


def people(num_people: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of distinct persons, and two same pairs of each."""
    different = [(i, j) for i in range(num_people) for j in range(i)]
    ids = np.array(different + [(i, i) for i in range(num_people)] * 2)
    return ids, ids[:, 0] == ids[:, 1]


def test_pairs_keep_the_number_of_each_class_and_within_folds_for_the_accuracy() -> None:
    by_fold, pooled = PairResampling(IS_SAME, FOLDS).draw(200, np.random.default_rng(0))
    assert by_fold.shape == pooled.shape == (200, 22)
    assert (by_fold.min(), pooled.min()) == (0, 0)
    for label in (True, False):
        assert (pooled[:, label == IS_SAME].sum(axis=1) == (label == IS_SAME).sum()).all()
        for fold in range(4):
            stratum = (fold == FOLDS) & (label == IS_SAME)
            assert (by_fold[:, stratum].sum(axis=1) == stratum.sum()).all()
    in_first_fold = pooled[:, FOLDS == 0].sum(axis=1)
    assert in_first_fold.min() < 6 < in_first_fold.max()


def test_pairs_are_drawn_as_a_multinomial() -> None:
    """n draws from n: mean 1, variance 1 - 1/n, covariance -1/n; standard errors below 0.02 over 10,000 resamples."""
    _, pooled = PairResampling(IS_SAME, FOLDS).draw(10_000, np.random.default_rng(1))
    same = pooled[:, IS_SAME]
    size = same.shape[1]
    covariance = np.cov(same.T)
    assert same.mean(axis=0) == pytest.approx(np.ones(size), abs=0.05)
    np.testing.assert_allclose(np.diag(covariance), 1 - 1 / size, atol=0.08)
    np.testing.assert_allclose(covariance[~np.eye(size, dtype=bool)], -1 / size, atol=0.06)


def test_a_pair_alone_in_its_stratum_is_always_drawn_once() -> None:
    resampling = PairResampling(np.array([True, False, True]), np.array([0, 0, 1]))
    assert (resampling.draw(50, np.random.default_rng(2)).by_fold == 1).all()


@pytest.mark.parametrize("sizes", [[7], [3, 4], [1] * 7])
def test_the_size_of_a_block_changes_nothing(sizes: list[int]) -> None:
    ids, is_same = people()
    resampling, generator = IdentityResampling(ids, is_same), np.random.default_rng(3)
    whole = resampling.draw(7, np.random.default_rng(3)).pooled
    parts = np.concatenate([resampling.draw(size, generator).pooled for size in sizes])
    np.testing.assert_array_equal(parts, whole)


def test_a_pair_counts_as_often_as_its_persons_are_drawn() -> None:
    ids, is_same = people(6)
    weights, pooled = IdentityResampling(ids, is_same).draw(300, np.random.default_rng(4))
    assert weights is pooled
    for row in weights.tolist():
        numbers = {pair[0]: weight for pair, weight in zip(ids.tolist(), row, strict=True) if pair[0] == pair[1]}
        assert sum(numbers.values()) == 6
        for (left, right), weight in zip(ids.tolist(), row, strict=True):
            assert weight == (numbers[left] if left == right else numbers[left] * numbers[right])


def test_persons_are_drawn_as_a_multinomial() -> None:
    ids, is_same = people(8)
    weights = IdentityResampling(ids, is_same).draw(10_000, np.random.default_rng(5)).pooled
    same = weights[:, is_same][:, :8]
    np.testing.assert_allclose(same.mean(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(same.var(axis=0), 1 - 1 / 8, atol=0.08)
    # E[m_i m_j] = 1 - 1/K: different pairs weigh a little less than same ones, alike for all, which no rate notices.
    np.testing.assert_allclose(weights[:, ~is_same].mean(axis=0), 1 - 1 / 8, atol=0.06)


def test_different_pairs_that_share_no_person_get_three_times_their_variance() -> None:
    """The safe side that the docstring states: Var(m_i m_j) is about 3 where Var(m_i) is about 1."""
    size = 400
    left = np.arange(size)
    ids = np.concatenate([np.stack([left, left + size], axis=1), np.stack([left, left], axis=1)])
    is_same = ids[:, 0] == ids[:, 1]
    weights = IdentityResampling(ids, is_same).draw(2000, np.random.default_rng(6)).pooled
    assert weights[:, ~is_same].var() == pytest.approx(3, abs=0.2)
    assert weights[:, is_same].var() == pytest.approx(1, abs=0.05)


def test_names_and_numbers_of_persons_are_the_same() -> None:
    ids, is_same = people()
    named = np.array(["Ann", "Bea", "Cai", "Dan", "Eve"])[ids]
    for other in (named, 10_000 * ids - 7, ids.astype(np.int16)):
        found = IdentityResampling(other, is_same).draw(5, np.random.default_rng(7)).pooled
        expected = IdentityResampling(ids, is_same).draw(5, np.random.default_rng(7)).pooled
        np.testing.assert_array_equal(found, expected)


def test_the_two_sides_of_a_pair_may_change_places() -> None:
    ids, is_same = people()
    found = IdentityResampling(ids[:, ::-1], is_same).draw(5, np.random.default_rng(8)).pooled
    np.testing.assert_array_equal(found, IdentityResampling(ids, is_same).draw(5, np.random.default_rng(8)).pooled)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((3, 2), dtype=int), r"each of the 20 pairs, got int64 of shape \(3, 2\)"),
        (np.zeros(20, dtype=int), r"got int64 of shape \(20,\)"),
        (np.zeros((20, 2)), r"got float64 of shape \(20, 2\)"),
        (np.full((20, 2), None), r"got object of shape \(20, 2\)"),
    ],
)
def test_persons_of_other_shapes_and_types_are_refused(ids: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        IdentityResampling(ids, people()[1])


def test_persons_that_contradict_the_labels_are_named_by_pair() -> None:
    ids, is_same = people()
    flipped = is_same.copy()
    flipped[[2, 15]] ^= True
    with pytest.raises(DataError, match=r"^ids contradict is_same in 2 of 20 pairs: pairs 2, 15; a same pair shows"):
        IdentityResampling(ids, flipped)
    with pytest.raises(DataError, match=r"in 20 of 20 pairs: pairs 0, 1, 2, 3, 4, 5, 6, 7, …;"):
        IdentityResampling(ids, ~is_same)


def test_one_person_cannot_be_resampled() -> None:
    with pytest.raises(DataError, match=r"ids name 1 person\(s\); resampling persons needs at least 2"):
        IdentityResampling(np.zeros((4, 2), dtype=int), np.ones(4, dtype=bool))
