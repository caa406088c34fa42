"""McNemar's test against exact counting, the gaps of two networks, and how often they are called different."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation import compare_models, mcnemar_test, verify_distances
from gkd.evaluation.verification import judge_pairs


def draw(num_pairs: int, seed: int, gap: float = 0.0, own_noise: float = 0.15) -> tuple[np.ndarray, ...]:
    """Squared distances of two networks that find the same pairs hard, A better by `gap`, and the labels."""
    generator = np.random.default_rng(seed)
    is_same = np.arange(num_pairs) % 2 == 0
    sign = np.where(is_same, -1, 1)
    shared = generator.normal(0, 0.2, num_pairs)
    noise_a, noise_b = generator.normal(0, own_noise, (2, num_pairs))
    base = 1.6 + 0.35 * sign + shared
    return base + gap * sign + noise_a, base + noise_b, is_same


def drawn_people(num_people: int, seed: int, effect: float) -> tuple[np.ndarray, ...]:
    """Distances of two equally good networks, each with its own hard persons; labels; persons (P, 2)."""
    generator = np.random.default_rng(seed)
    different = np.array([(i, (i + step) % num_people) for i in range(num_people) for step in range(1, 9)])
    persons = np.arange(num_people)
    ids = np.concatenate([different, np.repeat(np.stack([persons, persons], axis=1), 8, axis=0)])
    ids = ids[generator.permutation(len(ids))]
    is_same = ids[:, 0] == ids[:, 1]
    base = 1.6 + np.where(is_same, -0.3, 0.3) + generator.normal(0, 0.1, len(ids))
    hardness = generator.normal(0, effect, (2, num_people))
    a, b = (base - each[ids[:, 0]] - each[ids[:, 1]] + generator.normal(0, 0.1, len(ids)) for each in hardness)
    return a, b, is_same, ids


def verdicts(num_both: int, num_only_a: int, num_only_b: int) -> tuple[np.ndarray, np.ndarray]:
    right_a = np.repeat([True, True, False, False], [num_both, num_only_a, num_only_b, 3])
    right_b = np.repeat([True, False, True, False], [num_both, num_only_a, num_only_b, 3])
    order = np.random.default_rng(0).permutation(len(right_a))
    return right_a[order], right_b[order]


def exact_p_by_counting(only_a: int, only_b: int) -> tuple[Fraction, Fraction]:
    """Sum the probabilities of all splits that are no more even than the observed one; half of its own for mid-p."""
    total, observed = only_a + only_b, abs(only_a - only_b)
    exact = mid = Fraction(0)
    for heads in range(total + 1):
        probability = Fraction(math.comb(total, heads), 2**total)
        distance = abs(2 * heads - total)
        exact += probability * (distance >= observed)
        mid += probability * (1 if distance > observed else Fraction(1, 2) if distance == observed else 0)
    return exact, mid if observed else Fraction(1)


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (1, 0), (0, 1), (5, 5), (6, 5), (2, 11), (9, 1), (40, 60), (300, 250), (30, 0)]
)
def test_p_values_equal_exact_counting(only_a: int, only_b: int) -> None:
    found = mcnemar_test(*verdicts(50, only_a, only_b))
    exact, mid = exact_p_by_counting(only_a, only_b)
    assert (found.num_only_a_right, found.num_only_b_right) == (only_a, only_b)
    assert found.exact_p == pytest.approx(float(exact), rel=1e-10)
    assert found.mid_p == pytest.approx(float(mid), rel=1e-10)


def test_published_example_of_mid_p() -> None:
    """1 and 7 discordant pairs: exact p 0.0703, mid-p 0.0391 (Fagerland, Lydersen and Laake 2013, table 1)."""
    found = mcnemar_test(*verdicts(12, 1, 7))
    assert (found.exact_p, found.mid_p) == pytest.approx((0.0703125, 0.0390625), abs=1e-12)


def test_many_discordant_pairs_neither_overflow_nor_underflow() -> None:
    wide = mcnemar_test(*verdicts(0, 500_000, 0))
    assert (wide.exact_p, wide.mid_p) == (0.0, 0.0)
    even = mcnemar_test(*verdicts(0, 100_500, 100_000))
    z = 500 / math.sqrt(200_500)
    assert even.mid_p == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


def test_mcnemar_is_symmetric_and_blind_to_what_both_judge_alike() -> None:
    first, second = mcnemar_test(*verdicts(10, 9, 3)), mcnemar_test(*verdicts(900, 3, 9))
    assert (first.exact_p, first.mid_p) == (second.exact_p, second.mid_p)


@pytest.mark.parametrize("shapes", [((3,), (4,)), ((2, 3), (2, 3))])
def test_mcnemar_refuses_other_pairs(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(DataError, match="must be judged on the same pairs"):
        mcnemar_test(np.ones(shapes[0], dtype=bool), np.ones(shapes[1], dtype=bool))


def test_gaps_are_those_of_the_figures() -> None:
    a, b, is_same = draw(400, 0, gap=0.1)
    comparison = compare_models(a, b, is_same, num_resamples=300)
    result_a, result_b = verify_distances(a, is_same), verify_distances(b, is_same)
    assert comparison.accuracy_gap.gap == pytest.approx(result_a.accuracy - result_b.accuracy, abs=1e-12)
    assert comparison.auc_gap.gap == pytest.approx(result_a.auc - result_b.auc, abs=1e-12)
    assert comparison.eer_gap.gap == pytest.approx(result_a.eer - result_b.eer, abs=1e-12)
    for target, gap in comparison.tar_gap.items():
        tar_a, tar_b = result_a.tar_at_far[target], result_b.tar_at_far[target]
        if tar_a is None:
            assert gap is tar_b is None
            continue
        assert gap.gap == pytest.approx(tar_a - tar_b, abs=1e-12)
        assert gap.low <= gap.gap <= gap.high
    assert comparison.mcnemar == mcnemar_test(judge_pairs(a, is_same), judge_pairs(b, is_same))
    assert comparison.mcnemar_p == comparison.mcnemar.mid_p


def test_the_interval_equals_a_bootstrap_by_loops() -> None:
    a, b, is_same = draw(120, 1, gap=0.05)
    generator = np.random.default_rng(2)
    same, different = np.flatnonzero(is_same), np.flatnonzero(~is_same)
    gaps = []
    for _ in range(1500):
        drawn = np.concatenate([generator.choice(same, len(same)), generator.choice(different, len(different))])
        auc_a, auc_b = (
            (each[drawn[:60], None] < each[None, drawn[60:]]).mean() for each in (a, b)
        )  # no ties: the share of couples that are ranked rightly
        gaps.append(auc_a - auc_b)
    found = compare_models(a, b, is_same, num_resamples=3000, confidence=0.9).auc_gap
    width = found.high - found.low
    # A tie within a resample is a pair with itself, which has one label, so none counts here.
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(gaps, [0.05, 0.95])), abs=0.1 * width)


def test_pairing_narrows_every_gap() -> None:
    a, b, is_same = draw(800, 3, own_noise=0.03)
    paired = compare_models(a, b, is_same, num_resamples=400)
    same, different = np.flatnonzero(is_same), np.flatnonzero(~is_same)
    mixed = b.copy()
    mixed[same], mixed[different] = b[np.roll(same, 37)], b[np.roll(different, 37)]
    apart = compare_models(a, mixed, is_same, num_resamples=400)
    for name in ("accuracy_gap", "auc_gap", "eer_gap"):
        near, wide = getattr(paired, name), getattr(apart, name)
        assert near.high - near.low < 0.85 * (wide.high - wide.low)


def test_swapping_mirrors_and_a_seed_repeats() -> None:
    a, b, is_same = draw(300, 4, gap=0.05)
    first = compare_models(a, b, is_same, num_resamples=200, seed=5)
    assert compare_models(a, b, is_same, num_resamples=200, seed=5) == first
    assert compare_models(a, b, is_same, num_resamples=200, seed=6) != first
    other = compare_models(b, a, is_same, num_resamples=200, seed=5)
    for gap, mirrored in ((first.accuracy_gap, other.accuracy_gap), (first.auc_gap, other.auc_gap)):
        assert (-mirrored.gap, -mirrored.high, -mirrored.low) == pytest.approx(tuple(gap), abs=1e-12)
    assert (first.mcnemar.num_only_a_right, first.mcnemar_p) == (other.mcnemar.num_only_b_right, other.mcnemar_p)


def test_a_network_does_not_differ_from_itself() -> None:
    a, _, is_same = draw(200, 7)
    comparison = compare_models(a, a, is_same, num_resamples=100)
    assert comparison.accuracy_gap == comparison.auc_gap == (0.0, 0.0, 0.0)
    assert (comparison.mcnemar_p, comparison.verdict) == (1.0, "no difference seen")


def test_a_clear_gap_is_called_from_both_sides() -> None:
    a, b, is_same = draw(1000, 8, gap=0.2)
    assert compare_models(a, b, is_same, num_resamples=200).verdict == "better"
    assert compare_models(b, a, is_same, num_resamples=200).verdict == "worse"


def test_the_verdict_needs_both_the_interval_and_mcnemar(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, is_same = draw(1000, 8, gap=0.2)
    unsure = mcnemar_test(*verdicts(900, 9, 3))
    assert unsure.mid_p > 0.05
    monkeypatch.setattr("gkd.evaluation.significance.mcnemar_test", lambda *_: unsure)
    comparison = compare_models(a, b, is_same, num_resamples=200)
    assert comparison.accuracy_gap.verdict == "better"
    assert comparison.verdict == "no difference seen"
    assert compare_models(a, b, is_same, num_resamples=200, confidence=0.8).verdict == "better"


@pytest.mark.slow
def test_equal_networks_are_rarely_called_different_and_a_real_gap_mostly() -> None:
    """200 studies of 400 pairs. `better` at most 2.5 % of the time, `worse` too: 5 of 200, and three deviations."""
    called = {"better": 0, "worse": 0, "no difference seen": 0}
    powerful = 0
    for seed in range(200):
        a, b, is_same = draw(400, 1000 + seed)
        called[compare_models(a, b, is_same, far_targets=(), num_resamples=200, seed=seed).verdict] += 1
        a, b, is_same = draw(400, 2000 + seed, gap=0.1)
        powerful += compare_models(a, b, is_same, far_targets=(), num_resamples=200, seed=seed).verdict == "better"
    assert called["better"] <= 11
    assert called["worse"] <= 11
    assert powerful >= 120


@pytest.mark.slow
def test_persons_are_resampled_where_they_are_known() -> None:
    """Two networks, each with its own hard persons: over pairs the gap seems surer than it is."""
    false_over_pairs = false_over_persons = 0
    for seed in range(80):
        a, b, is_same, ids = drawn_people(40, seed, effect=0.12)
        settings: dict[str, Any] = {"far_targets": (), "num_resamples": 200, "seed": seed}
        over_pairs = compare_models(a, b, is_same, **settings)
        over_persons = compare_models(a, b, is_same, ids, **settings)
        assert over_pairs.method != over_persons.method == "percentile bootstrap over identities"
        false_over_pairs += over_pairs.auc_gap.verdict != "no difference seen"
        false_over_persons += over_persons.auc_gap.verdict != "no difference seen"
    assert false_over_pairs >= 16
    assert false_over_persons <= 10  # 4 of 80, and three deviations


def test_json_holds_plain_values() -> None:
    a, b, is_same = draw(100, 9)
    comparison = compare_models(a, b, is_same, num_resamples=50)
    document = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert document["accuracy_gap"]["low"] == comparison.accuracy_gap.low
    assert document["tar_gap"]["1e-1"]["gap"] == comparison.tar_gap[1e-1].gap
    assert document["tar_gap"]["1e-4"] is None
    assert document["mcnemar"]["mid_p"] == comparison.mcnemar_p
    assert document["verdict"] == comparison.verdict
    assert document["num_resamples"] == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distances_b": np.zeros(3)}, "one length"),
        ({"distances_a": np.full(100, np.nan)}, "100 of 100 scores are NaN"),
        ({"is_same": np.ones(100, dtype=bool)}, "100 same and 0 different"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"num_resamples": 0}, "need a resample and a confidence between 0 and 1, got 0 and 0.95"),
        ({"confidence": 1.0}, "got 2000 and 1.0"),
        ({"far_targets": (2.0,)}, "FAR targets must be fractions"),
        ({"ids": np.zeros((100, 2), dtype=int)}, "ids contradict is_same in 50 of 100 pairs"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    a, b, is_same = draw(100, 10)
    with pytest.raises(DataError, match=message):
        compare_models(**{"distances_a": a, "distances_b": b, "is_same": is_same, **changes})
