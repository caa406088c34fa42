"""The gap between two methods, against a bootstrap written pair by pair, and its coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation import compare, verify_distances
from gkd.evaluation.compare import Gap, paired_gap
from gkd.evaluation.verification import fold_sizes, judge_pairs
from tests.reference import verification as reference


def drawn_distances(num_pairs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    is_same = generator.random(num_pairs) < 0.5
    return np.clip(generator.normal(np.where(is_same, 1.2, 1.9), 0.4), 0, 4), is_same


def drawn_verdicts(generator: np.random.Generator, rates: np.ndarray, num_runs: int) -> np.ndarray:
    """Verdicts (R, P) that are right with each pair's own rate: easy pairs are easy for every run."""
    return generator.random((num_runs, len(rates))) < rates


def bootstrap_by_loops(right_a: np.ndarray, right_b: np.ndarray, num_resamples: int, seed: int) -> list[float]:
    """Gaps of resamples, drawing one pair at a time for all runs of both methods."""
    generator = np.random.default_rng(seed)
    num_pairs = right_a.shape[1]
    gaps = []
    for _ in range(num_resamples):
        total = 0.0
        for pair in generator.integers(0, num_pairs, num_pairs):
            share_a = sum(int(run[pair]) for run in right_a) / len(right_a)
            share_b = sum(int(run[pair]) for run in right_b) / len(right_b)
            total += share_a - share_b
        gaps.append(total / num_pairs)
    return gaps


@pytest.mark.parametrize(("num_pairs", "folds"), [(100, 10), (105, 10), (37, 4)])
def test_verdicts_equal_those_of_the_literal_protocol(num_pairs: int, folds: int) -> None:
    distances, is_same = drawn_distances(num_pairs)
    expected = []
    parts = reference.folds_of(num_pairs, folds)
    for held_out in parts:
        others = [pair for part in parts if part is not held_out for pair in part]
        threshold = reference.best_threshold(distances.tolist(), is_same.tolist(), others)
        expected += [bool((distances[pair] < threshold) == is_same[pair]) for pair in held_out]
    assert judge_pairs(distances, is_same, folds).tolist() == expected


@pytest.mark.parametrize("num_pairs", [200, 207])
def test_verdicts_average_to_the_accuracies_of_the_folds(num_pairs: int) -> None:
    distances, is_same = drawn_distances(num_pairs, seed=3)
    ends = np.cumsum(fold_sizes(num_pairs, 10))[:-1]
    means = [float(part.mean()) for part in np.split(judge_pairs(distances, is_same), ends)]
    assert means == pytest.approx(verify_distances(distances, is_same).fold_accuracies, abs=1e-12)


def test_verdicts_refuse_what_the_protocol_refuses() -> None:
    with pytest.raises(DataError, match="fewer than the 10 folds"):
        judge_pairs(np.ones(4), np.array([True, False, True, False]))
    with pytest.raises(DataError, match="1 of 20 scores are NaN"):
        judge_pairs(np.where(np.arange(20) == 3, np.nan, 1.0), np.arange(20) < 10)
    with pytest.raises(DataError, match="two vectors of one length"):
        judge_pairs(np.ones(19), np.arange(20) < 10)


def test_the_gap_is_the_difference_of_the_accuracies() -> None:
    right = np.array([[1, 1, 1, 0], [1, 1, 0, 1]], dtype=bool)
    baseline = np.array([[1, 0, 0, 0], [1, 0, 1, 1]], dtype=bool)
    gap, low, high = paired_gap(right, baseline)
    assert gap == pytest.approx(0.75 - 0.5)
    assert low <= gap <= high


def test_equal_methods_have_no_gap_and_no_interval() -> None:
    right = np.random.default_rng(0).random((3, 50)) < 0.8
    assert paired_gap(right, right) == (0.0, 0.0, 0.0)
    assert paired_gap(right, right).verdict == "no difference seen"


def test_swapping_the_methods_mirrors_the_interval() -> None:
    generator = np.random.default_rng(1)
    right_a, right_b = generator.random((2, 300)) < 0.9, generator.random((3, 300)) < 0.8
    gap, low, high = paired_gap(right_a, right_b, num_resamples=40_000)
    other = paired_gap(right_b, right_a, num_resamples=40_000)
    assert (-other.gap, -other.high, -other.low) == pytest.approx((gap, low, high), abs=1e-3)


def test_the_order_of_pairs_does_not_matter_but_their_pairing_does() -> None:
    generator = np.random.default_rng(2)
    rates = np.where(generator.random(500) < 0.5, 0.98, 0.3)
    right_a, right_b = drawn_verdicts(generator, rates, 6), drawn_verdicts(generator, rates, 6)
    order = generator.permutation(500)
    shuffled = paired_gap(right_a[:, order], right_b[:, order])
    paired = paired_gap(right_a, right_b)
    assert shuffled == pytest.approx(paired, abs=1e-12)
    unpaired = paired_gap(right_a, right_b[:, order])
    assert unpaired.high - unpaired.low > 1.5 * (paired.high - paired.low)


def test_the_interval_equals_that_of_the_bootstrap_by_loops() -> None:
    generator = np.random.default_rng(4)
    right_a, right_b = generator.random((2, 40)) < 0.9, generator.random((3, 40)) < 0.7
    gaps = bootstrap_by_loops(right_a, right_b, 3000, seed=5)
    for confidence in (0.5, 0.95):
        found = paired_gap(right_a, right_b, confidence=confidence, num_resamples=30_000)
        expected = np.quantile(gaps, [(1 - confidence) / 2, (1 + confidence) / 2])
        assert (found.low, found.high) == pytest.approx(expected, abs=0.012)  # about three standard errors


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(6)
    right_a, right_b = generator.random((3, 100)) < 0.9, generator.random((3, 100)) < 0.8
    whole = paired_gap(right_a, right_b, num_resamples=1001)
    monkeypatch.setattr(compare, "_BLOCK_ELEMENTS", 70)
    assert paired_gap(right_a, right_b, num_resamples=1001) == pytest.approx(whole, abs=1e-15)


def test_the_same_seed_gives_the_same_interval_and_another_nearly_so() -> None:
    generator = np.random.default_rng(7)
    right_a, right_b = generator.random((1, 400)) < 0.9, generator.random((1, 400)) < 0.8
    first = paired_gap(right_a, right_b)
    assert paired_gap(right_a, right_b) == first
    assert paired_gap(right_a, right_b, seed=1) == pytest.approx(first, abs=4e-3)
    few = [paired_gap(right_a, right_b, num_resamples=20, seed=seed) for seed in (0, 1)]
    assert few[0] != few[1]


def test_the_interval_covers_the_true_gap_as_often_as_it_says() -> None:
    """600 studies of 3 seeds on 300 drawn pairs; the standard error of the share is 0.009, allowed are three."""
    generator = np.random.default_rng(8)
    hits = 0
    for study in range(600):
        rates = np.where(generator.random(300) < 0.7, 0.97, 0.6)
        right_a, right_b = drawn_verdicts(generator, rates, 3), drawn_verdicts(generator, rates - 0.05, 3)
        gap = paired_gap(right_a, right_b, num_resamples=800, seed=study)
        hits += gap.low <= 0.05 <= gap.high
    assert hits / 600 == pytest.approx(0.95, abs=0.027)


def test_one_run_may_be_a_plain_vector() -> None:
    right_a, right_b = np.array([True, True, False]), np.array([True, False, False])
    assert paired_gap(right_a, right_b) == paired_gap(right_a[None], right_b[None])


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [
        (Gap(0.02, 0.01, 0.03), "better"),
        (Gap(-0.02, -0.03, -0.01), "worse"),
        (Gap(0.02, -0.01, 0.03), "no difference seen"),
        (Gap(0.01, 0.0, 0.02), "no difference seen"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(gap: Gap, verdict: str) -> None:
    assert gap.verdict == verdict


@pytest.mark.parametrize(
    ("shape_a", "shape_b"), [((2, 5), (2, 6)), ((2, 0), (2, 0)), ((0, 5), (1, 5)), ((1, 1, 5), (1, 5))]
)
def test_other_pairs_and_no_pairs_are_refused(shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="must be judged on the same pairs"):
        paired_gap(np.ones(shape_a, dtype=bool), np.ones(shape_b, dtype=bool))


@pytest.mark.parametrize("options", [{"num_resamples": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(DataError, match="one resample and a confidence between 0 and 1"):
        paired_gap(np.ones((1, 5), dtype=bool), np.ones((1, 5), dtype=bool), **options)


def test_a_method_without_runs_is_refused() -> None:
    with pytest.raises(DataError, match=r"got 0 run\(s\)"):
        paired_gap(np.ones((1, 5), dtype=bool), np.ones((0, 5), dtype=bool))
