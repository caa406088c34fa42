"""Weighted figures against sets in which pairs are literally repeated, and against the unweighted figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.core.errors import DataError
from gkd.evaluation import FAR_TARGETS, verify_distances
from gkd.evaluation.weighted import WeightedFigures
from tests.reference import verification as reference

TARGETS = (0.5, 0.2, 0.1, 1e-3)


def drawn(num_pairs: int, seed: int, is_tied: bool = False) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    is_same = np.arange(num_pairs) % 2 == 0
    distances = generator.normal(np.where(is_same, 1.3, 1.8), 0.4)
    return (np.round(distances, 1) if is_tied else distances), is_same


def ones(num_pairs: int) -> np.ndarray:
    return np.ones((1, num_pairs), dtype=np.int64)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(("num_pairs", "folds"), [(600, 10), (105, 10), (40, 3), (2, 2)])
def test_weights_of_one_give_the_figures_of_the_set(num_pairs: int, folds: int, is_tied: bool) -> None:
    distances, is_same = drawn(num_pairs, 0, is_tied)
    figures, result = (
        WeightedFigures(distances, is_same, folds, FAR_TARGETS),
        verify_distances(distances, is_same, folds),
    )
    auc, eer, tars = figures.roc(ones(num_pairs))
    assert figures.accuracy(ones(num_pairs)) == pytest.approx([result.accuracy], abs=1e-15)
    assert (auc.tolist(), eer.tolist()) == ([result.auc], [result.eer])
    known = [tar for tar in result.tar_at_far.values() if tar is not None]
    assert tars[0].tolist() == known
    assert list(figures.is_measurable.values()) == [tar is not None for tar in result.tar_at_far.values()]


@pytest.mark.parametrize("is_tied", [False, True])
def test_whole_weights_equal_repeated_pairs(is_tied: bool) -> None:
    distances, is_same = drawn(41, 1, is_tied)
    weights = np.random.default_rng(2).integers(0, 4, (5, 41))
    figures = WeightedFigures(distances, is_same, 4, TARGETS)
    auc, eer, tars = figures.roc(weights)
    accuracies = figures.accuracy(weights)
    for row, plain in enumerate(weights.tolist()):
        expected = reference.weighted_accuracy(distances.tolist(), is_same.tolist(), plain, 4)
        assert accuracies[row] == pytest.approx(expected, abs=1e-12)
        scores = reference.repeated((-distances).tolist(), plain)
        labels = reference.repeated(is_same.tolist(), plain)
        assert auc[row] == pytest.approx(reference.area_under_curve(scores, labels), abs=1e-12)
        assert eer[row] == pytest.approx(reference.equal_error_rate(scores, labels), abs=1e-12)
        assert tars[row].tolist() == [reference.tar_at_far(scores, labels, target) for target in TARGETS[:3]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(8, 30), st.integers(2, 4), st.sampled_from([0.01, 0.1, 0.5, 2.0]))
def test_any_weights_equal_repeated_pairs(seed: int, num_pairs: int, folds: int, grid: float) -> None:
    generator = np.random.default_rng(seed)
    is_same = np.arange(num_pairs) % 2 == 0
    distances = np.round(generator.uniform(0, 4, num_pairs) / grid) * grid
    weights = generator.poisson(1, num_pairs)
    weights[:2] += 1
    weights[-1] += 1  # two folds with pairs, so that each has others
    figures = WeightedFigures(distances, is_same, folds, (0.5,))
    expected = reference.weighted_accuracy(distances.tolist(), is_same.tolist(), weights.tolist(), folds)
    assert figures.accuracy(weights[None]) == pytest.approx([expected], abs=1e-12)
    scores = reference.repeated((-distances).tolist(), weights.tolist())
    labels = reference.repeated(is_same.tolist(), weights.tolist())
    auc, eer, _ = figures.roc(weights[None])
    assert auc == pytest.approx([reference.area_under_curve(scores, labels)], abs=1e-12)
    assert eer == pytest.approx([reference.equal_error_rate(scores, labels)], abs=1e-12)


def test_twice_all_weights_change_nothing() -> None:
    distances, is_same = drawn(200, 3)
    figures = WeightedFigures(distances, is_same, 10, TARGETS)
    weights = np.random.default_rng(4).integers(0, 3, (6, 200))
    np.testing.assert_allclose(figures.columns(2 * weights, 2 * weights), figures.columns(weights, weights), atol=1e-15)


def test_a_fold_without_weight_is_left_out_of_the_mean() -> None:
    distances, is_same = drawn(40, 5)
    weights = ones(40)
    weights[0, :10] = 0
    rest = verify_distances(distances[10:], is_same[10:], 3)
    assert WeightedFigures(distances, is_same, 4, TARGETS).accuracy(weights) == pytest.approx([rest.accuracy])


def test_a_class_without_weight_is_found() -> None:
    distances, is_same = drawn(20, 6)
    weights = np.stack([np.ones(20), is_same, ~is_same, np.zeros(20)]).astype(np.int64)
    found = WeightedFigures(distances, is_same, 10, TARGETS).has_both_classes(weights)
    assert found.tolist() == [True, False, False, False]


def test_columns_hold_all_figures_and_no_tar_where_none_can_be_measured() -> None:
    distances, is_same = drawn(20, 7)
    assert WeightedFigures(distances, is_same, 10, (1e-3,)).columns(ones(20), ones(20)).shape == (1, 3)
    columns = WeightedFigures(distances, is_same, 10, (0.5, 0.1)).columns(ones(20), ones(20))
    result = verify_distances(distances, is_same)
    assert columns[0, :3] == pytest.approx([result.accuracy, result.auc, result.eer])
    assert columns[0, 4] == result.tar_at_far[0.1]


@pytest.mark.parametrize("targets", [(0.0,), (0.1, -1e-3), (1.5,), (float("nan"),)])
def test_targets_that_are_no_rates_are_refused(targets: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="FAR targets must be fractions above 0, up to 1, got"):
        WeightedFigures(*drawn(20, 8), 10, targets)


def test_what_the_protocol_refuses_is_refused() -> None:
    distances, is_same = drawn(20, 9)
    with pytest.raises(DataError, match="20 same and 0 different"):
        WeightedFigures(distances, np.ones(20, dtype=bool), 10, TARGETS)
    with pytest.raises(DataError, match="1 of 20 scores are NaN or infinite"):
        WeightedFigures(np.where(np.arange(20) == 3, np.nan, distances), is_same, 10, TARGETS)
    with pytest.raises(DataError, match="fewer than the 30 folds"):
        WeightedFigures(distances, is_same, 30, TARGETS)
