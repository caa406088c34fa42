"""ROC quantities against literal counting; ties, tiny sets, unmeasurable FARs."""

from __future__ import annotations

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation import (
    FAR_TARGETS,
    area_under_curve,
    equal_error_rate,
    far_name,
    operating_points,
    roc_curve,
    tar_at_far,
)
from tests.reference import verification as reference


def _cases() -> list[tuple[str, np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    is_same = generator.random(150) < 0.4
    scores = generator.normal(is_same * 1.0, 1.0)
    mixed = np.tile([True, False], 30)
    return [
        ("random", scores, is_same),
        ("ties", np.round(scores, 1), is_same),
        ("two values", (scores > 0).astype(np.float64), is_same),
        ("all equal", np.zeros(60), mixed),
        ("perfect", np.where(mixed, 1.0, -1.0), mixed),
        ("reversed", np.where(mixed, -1.0, 1.0), mixed),
        ("one of each", np.array([0.1, 0.2]), np.array([True, False])),
        ("top tie of different pairs", np.array([1.0, 1.0, 0.5, 0.2]), np.array([False, False, True, True])),
    ]


@pytest.mark.parametrize(("scores", "is_same"), [case[1:] for case in _cases()], ids=[case[0] for case in _cases()])
def test_figures_equal_the_reference(scores: np.ndarray, is_same: np.ndarray) -> None:
    curve = roc_curve(scores, is_same)
    plain = scores.tolist(), is_same.tolist()
    assert area_under_curve(curve) == pytest.approx(reference.area_under_curve(*plain), abs=1e-12)
    assert equal_error_rate(curve) == pytest.approx(reference.equal_error_rate(*plain), abs=1e-12)
    targets = (*FAR_TARGETS, 0.25, 0.5, 1.0)
    assert tar_at_far(curve, targets) == {target: reference.tar_at_far(*plain, target) for target in targets}
    points = operating_points(curve, targets)
    assert points == {target: reference.operating_point(*plain, target) for target in targets}
    for threshold, far, tar in zip(curve.thresholds, curve.far, curve.tar, strict=True):
        assert (far, tar) == reference.rates(*plain, threshold)


def test_a_far_below_one_over_the_different_pairs_is_none() -> None:
    is_same = np.arange(2000) < 1000
    scores = np.linspace(1, 0, 2000)
    tars = tar_at_far(roc_curve(scores, is_same))
    assert tars == {1e-1: 1.0, 1e-2: 1.0, 1e-3: 1.0, 1e-4: None, 1e-5: None, 1e-6: None}
    one_less = tar_at_far(roc_curve(scores[:-1], is_same[:-1]))
    assert one_less[1e-3] is None


def test_a_target_that_is_met_exactly_counts() -> None:
    # 1000 different pairs, the highest of which outranks half of the same pairs: FAR 1e-3 may accept it, and no more.
    scores = np.concatenate((np.full(50, 3.0), np.full(50, 1.5), [2.0], [1.0], np.zeros(998)))
    is_same = np.arange(1100) < 100
    assert tar_at_far(roc_curve(scores, is_same), [1e-3]) == {1e-3: 1.0}
    tie = np.where(scores == 1.0, 2.0, scores)
    assert tar_at_far(roc_curve(tie, is_same), [1e-3]) == {1e-3: 0.5}


def test_nothing_can_be_accepted_where_different_pairs_tie_at_the_top() -> None:
    scores = np.array([1.0, 1.0, 0.9, 0.8])
    assert tar_at_far(roc_curve(scores, np.array([False, False, True, True])), [0.5]) == {0.5: 0.0}


def test_an_increasing_function_of_the_scores_changes_nothing() -> None:
    _, scores, is_same = _cases()[1]
    plain, squashed = roc_curve(scores, is_same), roc_curve(np.tanh(scores), is_same)
    np.testing.assert_array_equal(plain.num_false_accepts, squashed.num_false_accepts)
    np.testing.assert_array_equal(plain.num_true_accepts, squashed.num_true_accepts)


def test_large_counts_do_not_overflow() -> None:
    generator = np.random.default_rng(0)
    is_same = np.arange(200_000) < 100_000
    area = area_under_curve(roc_curve(generator.normal(size=200_000), is_same))
    assert area == pytest.approx(0.5, abs=0.01)


def test_curve_starts_at_nothing_and_ends_at_everything() -> None:
    curve = roc_curve(np.array([0.3, 0.3, 0.1]), np.array([True, False, False]))
    assert curve.thresholds.tolist() == [np.inf, 0.3, 0.1]
    assert curve.num_false_accepts.tolist() == [0, 1, 2]
    assert curve.num_true_accepts.tolist() == [0, 1, 1]
    assert (curve.num_same, curve.num_different) == (1, 2)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(DataError, match=r"scores \(3,\) and is_same \(2,\)"):
        roc_curve(np.zeros(3), np.array([True, False]))
    with pytest.raises(DataError, match="2 same and 0 different pairs"):
        roc_curve(np.zeros(2), np.array([True, True]))
    with pytest.raises(DataError, match="1 of 2 scores are NaN or infinite"):
        roc_curve(np.array([0.0, np.inf]), np.array([True, False]))


@pytest.mark.parametrize(("far", "name"), [(1e-1, "1e-1"), (1e-6, "1e-6"), (5e-4, "5e-4"), (0.00025, "2.5e-4")])
def test_far_names(far: float, name: str) -> None:
    assert far_name(far) == name
