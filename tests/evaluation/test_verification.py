"""Pair verification against the literal loops, on random and on adversarial pairs."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation import VerificationResult, squared_distances, verify_distances, verify_pairs
from gkd.evaluation.verification import THRESHOLDS, fold_sizes
from tests.reference import verification as reference


def _random_distances(num_pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    is_same = generator.random(num_pairs) < 0.5
    distances = np.clip(generator.normal(np.where(is_same, 1.2, 1.9), 0.4), 0, 4)
    return distances, is_same


def _assert_equals_reference(result: VerificationResult, folds: int) -> None:
    """Fold by fold, bit for bit: both divide the same two counts."""
    distances, is_same = result.distances.tolist(), result.is_same.tolist()
    expected = reference.fold_accuracies(distances, is_same, folds)
    assert list(result.fold_accuracies) == expected
    assert result.accuracy == pytest.approx(sum(expected) / folds, abs=1e-12)
    mean = sum(expected) / folds
    variance = sum((accuracy - mean) ** 2 for accuracy in expected) / folds
    assert result.accuracy_std == pytest.approx(variance**0.5, abs=1e-12)
    assert list(result.fold_thresholds) == reference.fold_thresholds(distances, is_same, folds)
    assert result.threshold == reference.best_threshold(distances, is_same, range(len(distances)))


@pytest.mark.parametrize(("num_pairs", "folds"), [(100, 10), (105, 10), (10, 10), (37, 4), (11, 2)])
def test_random_pairs_equal_the_reference(num_pairs: int, folds: int) -> None:
    for seed in range(3):
        distances, is_same = _random_distances(num_pairs, seed)
        _assert_equals_reference(verify_distances(distances, is_same, folds), folds)


def test_749_pairs_equal_the_reference_and_note_the_uneven_folds() -> None:
    distances, is_same = _random_distances(749)
    result = verify_distances(distances, is_same)
    _assert_equals_reference(result, 10)
    assert result.notes == ("749 pairs do not divide into 10 folds: the first 9 have 75 pairs, the others 74",)
    assert verify_distances(*_random_distances(750)).notes == ()


def test_distances_exactly_on_thresholds_are_not_accepted_there() -> None:
    generator = np.random.default_rng(5)
    distances = generator.choice(THRESHOLDS[::7], 120)
    is_same = generator.random(120) < 0.5
    _assert_equals_reference(verify_distances(distances, is_same), 10)


@pytest.mark.parametrize("value", [0.0, float(THRESHOLDS[50]), 3.99, 3.995, 4.0])
def test_all_equal_distances_equal_the_reference(value: float) -> None:
    is_same = np.arange(40) % 3 == 0
    result = verify_distances(np.full(40, value), is_same)
    _assert_equals_reference(result, 10)
    assert (result.auc, result.eer) == (0.5, 0.5)
    assert result.d_prime is None


def test_neighbours_of_a_threshold_fall_on_the_right_side() -> None:
    edge = THRESHOLDS[123]
    distances = np.tile([np.nextafter(edge, 0), edge, np.nextafter(edge, 4)], 20)
    is_same = np.tile([True, False, False], 20)
    result = verify_distances(distances, is_same)
    _assert_equals_reference(result, 10)
    assert result.accuracy == 1.0
    assert result.threshold == edge


def test_the_first_of_equally_good_thresholds_is_taken() -> None:
    distances, is_same = np.tile([0.5, 3.0], 20), np.tile([True, False], 20)
    assert verify_distances(distances, is_same).threshold == pytest.approx(0.51)


def test_a_fold_is_judged_at_the_threshold_of_the_others() -> None:
    # The second fold's same pairs lie at 2.0, beyond the first fold's threshold, and the other way round.
    distances = np.array([0.5, 1.5, 2.0, 3.0])
    is_same = np.array([True, False, True, False])
    result = verify_distances(distances, is_same, folds=2)
    assert result.fold_accuracies == (0.5, 0.5)
    assert result.threshold == pytest.approx(0.51)


def test_folds_are_contiguous_and_the_first_take_the_rest() -> None:
    assert fold_sizes(23, 5).tolist() == [5, 5, 5, 4, 4]
    assert [len(part) for part in reference.folds_of(23, 5)] == [5, 5, 5, 4, 4]


def test_embeddings_equal_the_reference() -> None:
    generator = np.random.default_rng(1)
    left = generator.normal(size=(60, 16))
    is_same = np.arange(60) % 2 == 0
    right = np.where(is_same[:, None], left + generator.normal(size=(60, 16)), generator.normal(size=(60, 16)))
    result = verify_pairs(left, 7.5 * right, is_same)
    expected = [reference.distance(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    np.testing.assert_allclose(result.distances, expected, rtol=0, atol=1e-12)
    _assert_equals_reference(result, 10)
    cosines = [1 - value / 2 for value in expected]
    same = [cosine for cosine, label in zip(cosines, is_same, strict=True) if label]
    different = [cosine for cosine, label in zip(cosines, is_same, strict=True) if not label]
    assert result.mean_same_cosine == pytest.approx(sum(same) / 30, abs=1e-12)
    assert result.mean_different_cosine == pytest.approx(sum(different) / 30, abs=1e-12)
    spread = ((np.var(same) + np.var(different)) / 2) ** 0.5
    assert result.d_prime == pytest.approx((sum(same) - sum(different)) / 30 / spread, abs=1e-12)
    assert (result.num_pairs, result.num_same) == (60, 30)


def test_small_distances_are_not_lost_to_cancellation() -> None:
    left, right = np.array([[1.0, 0.0]]), np.array([[1.0, 1e-9]])
    assert squared_distances(left, right)[0] == pytest.approx(1e-18, rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_long_and_short_embeddings_are_normalised_in_float64(dtype: type) -> None:
    left = np.full((1, 512), 6e4, dtype=dtype)
    assert squared_distances(left, left / dtype(1e4))[0] == pytest.approx(0, abs=1e-6)


def test_blocks_change_nothing_and_memory_stays_small() -> None:
    generator = np.random.default_rng(2)
    left = generator.normal(size=(9000, 64)).astype(np.float32)
    right = generator.normal(size=(9000, 64)).astype(np.float32)
    tracemalloc.start()
    distances = squared_distances(left, right)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(distances[4000:4200], squared_distances(left[4000:4200], right[4000:4200]))
    assert peak < 6 * 4096 * 64 * 8 + 9000 * 8 + 100_000


def test_inputs_are_unchanged_and_order_within_a_fold_is_irrelevant() -> None:
    generator = np.random.default_rng(3)
    left, right = generator.normal(size=(2, 40, 8))
    is_same = generator.random(40) < 0.5
    before = left.copy(), right.copy(), is_same.copy()
    result = verify_pairs(left, right, is_same)
    for array, copy in zip((left, right, is_same), before, strict=True):
        np.testing.assert_array_equal(array, copy)
    swapped = np.arange(40).reshape(10, 4)[:, ::-1].ravel()
    again = verify_pairs(right[swapped], left[swapped], is_same[swapped])
    assert again.fold_accuracies == result.fold_accuracies
    assert again.tar_at_far == result.tar_at_far


def test_zero_and_one_labels_are_taken_as_booleans() -> None:
    distances, is_same = _random_distances(40)
    assert verify_distances(distances, is_same.astype(np.int64)) == verify_distances(distances, is_same)


def test_unfit_embeddings_are_named_by_pair() -> None:
    left, right = np.ones((5000, 4), dtype=np.float32), np.ones((5000, 4), dtype=np.float32)
    left[3, 1], right[17], right[4500, 0] = np.nan, 0.0, np.inf
    message = r"^3 of 5000 pairs .*NaN, infinite or zero: pairs 3, 17, 4500; images 6, 35, 9001 \(pair i is images 2i"
    with pytest.raises(DataError, match=message):
        verify_pairs(left, right, np.arange(5000) % 2 == 0)


def test_many_unfit_embeddings_are_not_all_listed() -> None:
    with pytest.raises(
        DataError, match=r"20 of 20 pairs .* pairs 0, 1, 2, 3, 4, 5, 6, 7, …; images 0, 2, 4, 6, 8, 10, 12, 14, … "
    ):
        verify_pairs(np.zeros((20, 4)), np.ones((20, 4)), np.arange(20) % 2 == 0)


@pytest.mark.parametrize(("fill", "counts"), [(True, "40 same and 0 different"), (False, "0 same and 40 different")])
def test_one_class_only_is_refused_with_the_counts(fill: bool, counts: str) -> None:
    with pytest.raises(DataError, match=f"^{counts} pairs: verification needs both"):
        verify_pairs(np.ones((40, 2)), np.ones((40, 2)), np.full(40, fill))


def test_fewer_pairs_than_folds_are_refused_with_the_counts() -> None:
    with pytest.raises(DataError, match=r"^9 pairs \(5 same, 4 different\) are fewer than the 10 folds"):
        verify_pairs(np.ones((9, 2)), np.ones((9, 2)), np.arange(9) % 2 == 0)
    with pytest.raises(DataError, match=r"^0 pairs"):
        verify_pairs(np.ones((0, 2)), np.ones((0, 2)), np.ones(0, dtype=bool))


def test_wrong_shapes_and_labels_are_refused() -> None:
    is_same = np.arange(20) % 2 == 0
    with pytest.raises(DataError, match=r"\(20, 4\), \(20, 5\)"):
        verify_pairs(np.ones((20, 4)), np.ones((20, 5)), is_same)
    with pytest.raises(DataError, match="one length"):
        verify_pairs(np.ones((21, 4)), np.ones((21, 4)), is_same)
    with pytest.raises(DataError, match="vector of booleans, got float64"):
        verify_pairs(np.ones((20, 4)), np.ones((20, 4)), np.linspace(0, 1, 20))
    with pytest.raises(DataError, match="folds must be at least 2, got 1"):
        verify_distances(np.ones(20), is_same, folds=1)
    with pytest.raises(DataError, match="1 of 20 scores are NaN"):
        verify_distances(np.where(np.arange(20) == 3, np.nan, 1.0), is_same)


def test_json_holds_plain_values_only() -> None:
    result = verify_distances(*_random_distances(200))
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["accuracy"] == result.accuracy
    assert list(document["tar_at_far"]) == ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6"]
    assert document["tar_at_far"]["1e-3"] is None
    assert document["tar_at_far"]["1e-1"] == result.tar_at_far[1e-1]
    assert "distances" not in document
    assert document["fold_thresholds"] == list(result.fold_thresholds)
    assert document["smallest_far"] == 1 / (200 - result.num_same)
    for key, figures in (("observed_far", result.observed_far), ("cosine_at_far", result.cosine_at_far)):
        assert document[key]["1e-1"] == figures[1e-1]
        assert document[key]["1e-3"] is None


def test_the_far_reached_and_its_cosine_are_told_beside_the_tar() -> None:
    # 20 different pairs: the nearest at 0.6, two at 0.8 together, the rest far off; a target of 0.1 allows two.
    distances = np.array([0.2, 0.5, 0.7, 1.0] * 5 + [0.6, 0.8, 0.8] + [3.0] * 17)
    is_same = np.arange(40) < 20
    result = verify_distances(distances, is_same)
    assert result.smallest_far == 1 / 20
    assert result.tar_at_far[1e-1] == 15 / 20
    assert result.observed_far[1e-1] == 1 / 20
    assert result.cosine_at_far[1e-1] == pytest.approx(1 - 0.7 / 2)
    accepted = result.cosines >= result.cosine_at_far[1e-1]
    assert (accepted[is_same].mean(), accepted[~is_same].mean()) == (15 / 20, 1 / 20)
    assert result.observed_far[1e-2] is result.cosine_at_far[1e-2] is None


def test_a_far_at_which_nothing_is_accepted_has_no_cosine() -> None:
    distances = np.where(np.arange(40) < 20, 2.0, 1.0)
    result = verify_distances(distances, np.arange(40) < 20)
    assert (result.tar_at_far[1e-1], result.observed_far[1e-1], result.cosine_at_far[1e-1]) == (0.0, 0.0, None)
    json.dumps(result.to_json(), allow_nan=False)


def test_importing_evaluation_needs_neither_torch_nor_matplotlib() -> None:
    code = "import sys, gkd.evaluation; print([m for m in ('torch', 'matplotlib', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
