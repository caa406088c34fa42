"""The paired gap of d' against loops from the formula, its interval, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation import verify_distances
from gkd.evaluation.paired import d_prime, paired_d_prime_gap


def draw(num_pairs: int, seed: int, share_same: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosines of two networks that find the same pairs hard, A a little better, and the labels."""
    generator = np.random.default_rng(seed)
    is_same = np.arange(num_pairs) < share_same * num_pairs
    shared = generator.normal(0, 0.1, num_pairs)
    a, b = (np.where(is_same, mean, 0.0) + shared + generator.normal(0, 0.03, num_pairs) for mean in (0.65, 0.6))
    return np.clip(a, -1, 1), np.clip(b, -1, 1), is_same


def d_prime_by_loops(cosines: list[float], is_same: list[bool]) -> float:
    means, variances = [], []
    for wanted in (True, False):
        values = [cosine for cosine, label in zip(cosines, is_same, strict=True) if label is wanted]
        mean = math.fsum(values) / len(values)
        means.append(mean)
        variances.append(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return (means[0] - means[1]) / math.sqrt((variances[0] + variances[1]) / 2)


@pytest.mark.parametrize(("num_pairs", "share"), [(20, 0.5), (101, 0.2), (400, 0.7)])
def test_d_prime_equals_the_loops_and_the_verification_figure(num_pairs: int, share: float) -> None:
    a, b, is_same = draw(num_pairs, 1, share)
    assert d_prime(a, is_same) == pytest.approx(d_prime_by_loops(a.tolist(), is_same.tolist()), rel=1e-12)
    assert d_prime(a, is_same) == pytest.approx(verify_distances(2 - 2 * a, is_same).d_prime, rel=1e-9)
    gap, low, high = paired_d_prime_gap(a, b, is_same, num_resamples=200)
    expected = d_prime_by_loops(a.tolist(), is_same.tolist()) - d_prime_by_loops(b.tolist(), is_same.tolist())
    assert gap == pytest.approx(expected, rel=1e-12)
    assert low < gap < high


def test_the_interval_equals_a_slow_bootstrap() -> None:
    a, b, is_same = draw(120, 2)
    generator = np.random.default_rng(9)
    same, different = np.flatnonzero(is_same), np.flatnonzero(~is_same)
    gaps = []
    for _ in range(2000):
        drawn = np.concatenate([generator.choice(same, len(same)), generator.choice(different, len(different))])
        labels = is_same[drawn].tolist()
        gaps.append(d_prime_by_loops(a[drawn].tolist(), labels) - d_prime_by_loops(b[drawn].tolist(), labels))
    _, low, high = paired_d_prime_gap(a, b, is_same, num_resamples=2000, confidence=0.9)
    width = high - low
    assert (low, high) == pytest.approx(tuple(np.quantile(gaps, [0.05, 0.95])), abs=0.1 * width)


def test_the_interval_covers_the_true_gap_as_often_as_it_says() -> None:
    a, b, is_same = draw(200_000, 3)
    truth = d_prime(a, is_same) - d_prime(b, is_same)
    num_covered = 0
    for seed in range(200):
        _, low, high = paired_d_prime_gap(*draw(300, 100 + seed), num_resamples=300, confidence=0.9)
        num_covered += low <= truth <= high
    assert 165 <= num_covered <= 195  # 180 of 200, and three deviations of a binomial


def test_pairing_narrows_the_interval() -> None:
    a, b, is_same = draw(400, 4)
    _, low, high = paired_d_prime_gap(a, b, is_same)
    same, different = np.flatnonzero(is_same), np.flatnonzero(~is_same)
    unpaired = b[np.concatenate([np.roll(same, 7), np.roll(different, 7)])]
    _, wide_low, wide_high = paired_d_prime_gap(a, unpaired, is_same)
    assert high - low < 0.7 * (wide_high - wide_low)


def test_it_is_antisymmetric_repeatable_and_zero_for_equals() -> None:
    a, b, is_same = draw(90, 5)
    gap, low, high = paired_d_prime_gap(a, b, is_same, seed=3)
    assert paired_d_prime_gap(a, b, is_same, seed=3) == (gap, low, high)
    assert paired_d_prime_gap(a, b, is_same, seed=4) != (gap, low, high)
    assert paired_d_prime_gap(b, a, is_same, seed=3) == pytest.approx((-gap, -high, -low), rel=1e-9)
    assert paired_d_prime_gap(a, a, is_same) == (0.0, 0.0, 0.0)


def test_higher_confidence_is_wider_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, is_same = draw(90, 6)
    _, low, high = paired_d_prime_gap(a, b, is_same, confidence=0.9)
    _, lower, higher = paired_d_prime_gap(a, b, is_same, confidence=0.99)
    assert lower < low < high < higher
    monkeypatch.setattr("gkd.evaluation.paired._BLOCK_ELEMENTS", 1000)
    _, block_low, block_high = paired_d_prime_gap(a, b, is_same, confidence=0.9)
    assert (block_low, block_high) == pytest.approx((low, high), abs=0.1 * (high - low))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_resamples": 0}, "need a resample and a confidence between 0 and 1, got 0 and 0.95"),
        ({"confidence": 1.0}, "got 2000 and 1.0"),
        ({"cosines_a": np.zeros(3)}, r"cosines \(3,\) and is_same \(4,\) must be two vectors of one length"),
        ({"cosines_b": np.array([0.1, np.nan, 0.2, np.inf])}, "2 of 4 cosines are NaN or infinite"),
        ({"is_same": np.ones(4, dtype=bool)}, "4 same of 4 pairs: d' needs same and different pairs"),
        ({"cosines_a": np.array([0.5, 0.5, 0.1, 0.1])}, "all cosines of a class are equal"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    values = np.array([0.5, 0.6, 0.1, 0.2])
    arguments = {"cosines_a": values, "cosines_b": values, "is_same": np.array([True, True, False, False])}
    with pytest.raises(DataError, match=message):
        paired_d_prime_gap(**{**arguments, **changes})
