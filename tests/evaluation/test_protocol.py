"""The protocol against the literal loops on drawn pairs: ties with thresholds, equal, huge and tiny distances."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.core.errors import DataError
from gkd.evaluation import verify_distances, verify_pairs
from gkd.evaluation.folds import THRESHOLDS
from gkd.evaluation.verification import judge_pairs
from tests.reference import verification as reference

ON_THRESHOLDS = st.sampled_from(THRESHOLDS.tolist())
BESIDE_THRESHOLDS = st.builds(math.nextafter, ON_THRESHOLDS, st.sampled_from([-1.0, 5.0]))
EXTREME = st.sampled_from([0.0, -0.0, 5e-324, 1e-300, 3.99, 4.0, 1e30, 1e200, 1.7e308])
DISTANCES = st.one_of(ON_THRESHOLDS, BESIDE_THRESHOLDS, EXTREME, st.floats(0, 4))


@st.composite
def pair_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Distances (P,), labels (P,) of both classes, and a number of folds that P may not divide into."""
    distances = draw(st.lists(DISTANCES, min_size=2, max_size=24))
    size = len(distances)
    is_same = draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(lambda flags: len(set(flags)) == 2))
    return np.array(distances), np.array(is_same), draw(st.integers(2, min(10, size)))


def assert_equals_loops(distances: np.ndarray, is_same: np.ndarray, folds: int) -> None:
    result = verify_distances(distances, is_same, folds)
    judged = reference.judge_folds(distances.tolist(), is_same.tolist(), reference.folds_of(len(distances), folds))
    accuracies = [accuracy for _, accuracy in judged]
    mean = math.fsum(accuracies) / folds
    deviation = math.sqrt(math.fsum((accuracy - mean) ** 2 for accuracy in accuracies) / folds)
    assert result.fold_thresholds == tuple(threshold for threshold, _ in judged)
    assert result.accuracy == pytest.approx(mean, abs=1e-12)
    assert result.accuracy_std == pytest.approx(deviation, abs=1e-12)
    assert result.threshold == reference.best_threshold(distances.tolist(), is_same.tolist(), range(len(distances)))
    json.dumps(result.to_json(), allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(pair_sets())
def test_any_finite_distances_equal_the_loops(pairs: tuple[np.ndarray, np.ndarray, int]) -> None:
    assert_equals_loops(*pairs)


@settings(max_examples=30, deadline=None)
@given(pair_sets())
def test_any_finite_distances_have_the_rates_of_the_loops(pairs: tuple[np.ndarray, np.ndarray, int]) -> None:
    distances, is_same, folds = pairs
    result = verify_distances(distances, is_same, folds)
    scores = (-distances).tolist(), is_same.tolist()
    assert result.auc == pytest.approx(reference.area_under_curve(*scores), abs=1e-12)
    assert result.eer == pytest.approx(reference.equal_error_rate(*scores), abs=1e-12)
    assert result.smallest_far == 1 / sum(not label for label in is_same)
    for target in result.tar_at_far:
        point = reference.operating_point(*scores, target)
        found = result.observed_far[target], result.tar_at_far[target]
        assert found == ((None, None) if point is None else point[1:])
        is_any_accepted = point is not None and math.isfinite(point[0])
        assert result.cosine_at_far[target] == (1 + point[0] / 2 if is_any_accepted else None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30),
    st.lists(st.booleans(), max_size=30),
    st.integers(-1, 12),
)
def test_anything_else_is_refused_and_never_crashes(distances: list[float], is_same: list[bool], folds: int) -> None:
    try:
        result = verify_distances(np.array(distances), np.array(is_same, dtype=bool), folds)
    except DataError:
        return
    assert len(distances) == len(is_same) >= folds >= 2
    assert np.isfinite(distances).all()
    assert 0 <= result.accuracy <= 1
    assert len(result.fold_thresholds) == folds


@pytest.mark.parametrize("value", [0.0, 5e-324, float(THRESHOLDS[29]), 3.99, 4.0, 1e300, 1.7e308])
@pytest.mark.parametrize(("num_pairs", "folds"), [(40, 10), (43, 5)])
def test_equal_distances_equal_the_loops(value: float, num_pairs: int, folds: int) -> None:
    assert_equals_loops(np.full(num_pairs, value), np.arange(num_pairs) % 3 == 0, folds)


def test_749_pairs_on_thresholds_equal_the_loops() -> None:
    generator = np.random.default_rng(0)
    is_same = generator.random(749) < 0.4
    noise = generator.normal(0, 0.3, 749)
    distances = THRESHOLDS[np.clip(np.rint(100 * (np.where(is_same, 1.2, 1.7) + noise)), 0, 399).astype(int)]
    assert_equals_loops(distances, is_same, 10)


def test_one_fold_is_refused_since_its_threshold_would_be_chosen_on_the_judged_pairs() -> None:
    distances, is_same = np.linspace(0, 3, 20), np.arange(20) < 10
    for judge in (verify_distances, judge_pairs):
        with pytest.raises(DataError, match="folds must be at least 2, got 1"):
            judge(distances, is_same, 1)


@pytest.mark.parametrize(("row", "side", "image"), [(0, 0, 0), (0, 1, 1), (7, 0, 14), (19, 1, 39)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_unfit_embedding_is_named_by_its_image(row: int, side: int, image: int, value: float) -> None:
    embeddings = np.random.default_rng(0).normal(size=(2, 20, 4)).astype(np.float32)
    embeddings[side, row, 2] = value
    with pytest.raises(DataError, match=rf"^1 of 20 pairs .* pairs {row}; images {image} \(pair i is images 2i and"):
        verify_pairs(embeddings[0], embeddings[1], np.arange(20) % 2 == 0)


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_long_and_short_embeddings_have_the_figures_of_unit_ones(length: float) -> None:
    left, right = np.random.default_rng(1).normal(size=(2, 60, 8)).astype(np.float32)
    is_same = np.arange(60) % 2 == 0
    expected = verify_pairs(left, right, is_same)
    found = verify_pairs(left * np.float32(length), right, is_same)
    np.testing.assert_allclose(found.distances, expected.distances, atol=1e-6)
