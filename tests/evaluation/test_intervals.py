"""Intervals of the verification figures: against a bootstrap by loops, and how often they cover the truth.

The truth of the area under the ROC, the equal error rate and the TAR is that of the normal laws the scores are drawn
from, in closed form. That of the accuracy is the mean accuracy that the protocol finds in sets of this size: a
threshold chosen on few pairs is not the best one, and no larger set would tell by how much.
"""

from __future__ import annotations

import json
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation import intervals, verification_intervals, verify_distances
from gkd.evaluation.intervals import VerificationIntervals
from tests.reference import verification as reference

NORMAL = NormalDist()
FAR = 0.1


def draw(num_pairs: int, seed: int, gap: float = 0.5, deviation: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    is_same = np.arange(num_pairs) % 2 == 0
    mean = np.where(is_same, 1.6 - gap / 2, 1.6 + gap / 2)
    return np.random.default_rng(seed).normal(mean, deviation), is_same


def draw_people(
    num_people: int, seed: int, effect: float = 0.08, num_partners: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each person beside the next few, and six same pairs of each; who is easily recognised is so in all pairs."""
    generator = np.random.default_rng(seed)
    persons = np.arange(num_people)
    different = [np.stack([persons, (persons + step) % num_people], axis=1) for step in range(1, num_partners + 1)]
    same = np.repeat(np.stack([persons, persons], axis=1), 6, axis=0)
    ids = generator.permutation(np.concatenate([*different, same]))
    is_same = ids[:, 0] == ids[:, 1]
    ease = generator.normal(0, effect, num_people)[ids].sum(axis=1)
    return generator.normal(np.where(is_same, 1.4, 1.8), 0.1) - ease, is_same, ids


def truths(gap: float, same_deviation: float, different_deviation: float) -> dict[str, float]:
    """Figures of normal distances that are lower by `gap` for same pairs."""
    threshold = NORMAL.inv_cdf(FAR) * different_deviation
    return {
        "auc": NORMAL.cdf(gap / math.hypot(same_deviation, different_deviation)),
        "eer": NORMAL.cdf(-gap / (same_deviation + different_deviation)),
        "tar": NORMAL.cdf((gap + threshold) / same_deviation),
    }


def covered(found: VerificationIntervals, truth: dict[str, float]) -> dict[str, bool]:
    by_name = {"accuracy": found.accuracy, "auc": found.auc, "eer": found.eer, "tar": found.tar_at_far[FAR]}
    return {name: by_name[name].low <= value <= by_name[name].high for name, value in truth.items()}


def shares(hits: list[dict[str, bool]]) -> dict[str, float]:
    return {name: sum(each[name] for each in hits) / len(hits) for name in hits[0]}


def figures_by_loops(distances: np.ndarray, is_same: np.ndarray, drawn: list[list[int]]) -> dict[str, float]:
    """The figures of the pairs `drawn` in each fold, from the reference."""
    judged = reference.judge_folds(distances.tolist(), is_same.tolist(), drawn)
    flat = [pair for part in drawn for pair in part]
    scores, labels = (-distances)[flat].tolist(), is_same[flat].tolist()
    return {
        "accuracy": sum(accuracy for _, accuracy in judged) / len(judged),
        "auc": reference.area_under_curve(scores, labels),
        "eer": reference.equal_error_rate(scores, labels),
    }


def test_the_intervals_equal_those_of_a_bootstrap_by_loops() -> None:
    distances, is_same = draw(60, 0)
    generator = np.random.default_rng(1)
    strata = [(np.arange(60) // 20 == fold) & (is_same == label) for fold in range(3) for label in (True, False)]
    found_by_loops: dict[str, list[float]] = {"accuracy": [], "auc": [], "eer": []}
    for _ in range(250):
        drawn = [generator.choice(np.flatnonzero(stratum), stratum.sum()).tolist() for stratum in strata]
        parts = [drawn[2 * fold] + drawn[2 * fold + 1] for fold in range(3)]
        for name, value in figures_by_loops(distances, is_same, parts).items():
            found_by_loops[name].append(value)
    found = verification_intervals(distances, is_same, folds=3, num_resamples=4000, confidence=0.8, far_targets=())
    # Drawn within folds, the pooled figures spread a little less: each of six strata of ten loses a tenth of variance.
    for name, slack in (("accuracy", 0.15), ("auc", 0.2), ("eer", 0.2)):
        interval = getattr(found, name)
        expected = np.quantile(found_by_loops[name], [0.1, 0.9])
        assert (interval.low, interval.high) == pytest.approx(
            tuple(expected), abs=slack * (interval.high - interval.low)
        )


def test_an_interval_holds_the_figure_and_says_how_it_was_found() -> None:
    distances, is_same = draw(600, 2)
    result = verify_distances(distances, is_same)
    found = verification_intervals(distances, is_same, num_resamples=300, confidence=0.9)
    figures = {"accuracy": result.accuracy, "auc": result.auc, "eer": result.eer}
    for name, figure in figures.items():
        interval = getattr(found, name)
        assert interval.low < figure < interval.high
        assert interval[2:] == (0.9, "percentile bootstrap over pairs", 300)
    assert list(found.tar_at_far) == list(result.tar_at_far)
    for target, tar in result.tar_at_far.items():
        interval = found.tar_at_far[target]
        assert interval is None if tar is None else interval.low <= tar <= interval.high


def test_more_pairs_narrow_and_more_confidence_widens() -> None:
    small, large = verification_intervals(*draw(200, 3)), verification_intervals(*draw(3200, 3))
    sure = verification_intervals(*draw(200, 3), confidence=0.99)
    for name in ("accuracy", "auc", "eer"):
        widths = [getattr(each, name).high - getattr(each, name).low for each in (large, small, sure)]
        assert 2.5 * widths[0] < widths[1] < widths[2]


def test_a_seed_repeats_and_blocks_keep_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    distances, is_same = draw(300, 4)
    first = verification_intervals(distances, is_same, seed=1)
    assert verification_intervals(distances, is_same, seed=1) == first
    assert verification_intervals(distances, is_same, seed=2) != first
    monkeypatch.setattr(intervals, "_BLOCK_ELEMENTS", 100_000)
    blocks = verification_intervals(distances, is_same, seed=1)
    for name in ("accuracy", "auc", "eer"):
        width = getattr(first, name).high - getattr(first, name).low
        assert getattr(blocks, name)[:2] == pytest.approx(getattr(first, name)[:2], abs=0.1 * width)


def test_blocks_of_persons_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    distances, is_same, ids = draw_people(12, 5)
    whole = verification_intervals(distances, is_same, ids=ids, num_resamples=101)
    monkeypatch.setattr(intervals, "_BLOCK_ELEMENTS", 1000)
    assert verification_intervals(distances, is_same, ids=ids, num_resamples=101) == whole


def test_a_set_without_errors_has_intervals_without_width_and_notes_that_say_so() -> None:
    is_same = np.arange(100) % 2 == 0
    found = verification_intervals(np.where(is_same, 0.5, 1.8), is_same, num_resamples=50)
    assert found.accuracy[:2] == found.auc[:2] == (1.0, 1.0)
    assert found.eer[:2] == (0.0, 0.0)
    assert found.notes[0] == (
        "accuracy rests on 0 pairs judged wrongly, fewer than 10: its interval is likely too narrow"
    )
    assert any(note.startswith("TAR at FAR 1e-1 rests on 0 misses") for note in found.notes)


def test_notes_name_the_figures_of_few_errors_only() -> None:
    distances, is_same = draw(2000, 6)
    result = verify_distances(distances, is_same)
    found = verification_intervals(distances, is_same, num_resamples=20, far_targets=(0.1, 5e-3, 1e-3, 1e-5))
    assert 0 < result.accuracy < 0.99
    assert [note.split(",")[0] for note in found.notes] == [
        "TAR at FAR 5e-3 rests on 5 false accepts",
        "TAR at FAR 1e-3 rests on 1 false accepts",
    ]
    assert found.tar_at_far[1e-5] is None


def test_notes_count_the_false_accepts_that_ties_leave() -> None:
    # 200 different pairs: FAR 0.1 would allow 20, but after the nearest 5 come 30 that are equally near.
    distances = np.concatenate([np.linspace(0.5, 1.5, 200), np.full(5, 0.6), np.full(30, 0.7), np.full(165, 2.0)])
    found = verification_intervals(distances, np.arange(400) < 200, num_resamples=20, far_targets=(FAR,))
    assert any(note.startswith("TAR at FAR 1e-1 rests on 5 false accepts, fewer than 10") for note in found.notes)


def test_few_persons_are_noted() -> None:
    distances, is_same, ids = draw_people(99, 9)
    few = verification_intervals(distances, is_same, ids=ids, num_resamples=10)
    assert few.notes[-1] == "99 persons, fewer than 100: intervals over persons are likely too narrow"
    distances, is_same, ids = draw_people(100, 9)
    enough = verification_intervals(distances, is_same, ids=ids, num_resamples=10)
    assert not any("persons" in note for note in enough.notes)


def test_json_holds_plain_values() -> None:
    found = verification_intervals(*draw(100, 7), num_resamples=30)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["accuracy"] == found.accuracy._asdict()
    assert document["tar_at_far"]["1e-1"]["high"] == found.tar_at_far[1e-1].high
    assert document["tar_at_far"]["1e-4"] is None
    assert document["notes"] == list(found.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_resamples": 0}, "need a resample and a confidence between 0 and 1, got 0 and 0.95"),
        ({"confidence": 0.0}, "got 2000 and 0.0"),
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"far_targets": (0.0,)}, "FAR targets must be fractions above 0"),
        ({"distances": np.full(40, np.inf)}, "40 of 40 scores are NaN or infinite"),
        ({"is_same": np.zeros(40, dtype=bool)}, "0 same and 40 different"),
        ({"ids": np.zeros((40, 3), dtype=int)}, r"of shape \(40, 3\)"),
    ],
)
def test_what_has_no_intervals_is_refused(changes: dict[str, Any], message: str) -> None:
    distances, is_same = draw(40, 8)
    with pytest.raises(DataError, match=message):
        verification_intervals(**{"distances": distances, "is_same": is_same, **changes})


def test_so_few_persons_that_resamples_lack_a_class_are_refused() -> None:
    ids = np.array([(0, 0)] * 10 + [(0, 1)] * 10)
    distances, is_same = np.linspace(1, 2, 20), np.arange(20) < 10
    with pytest.raises(DataError, match="of 400 resamples have no same or no different pair: too few persons"):
        verification_intervals(distances, is_same, ids=ids, folds=2, num_resamples=400)


def test_resamples_that_lack_a_class_are_left_out_and_counted() -> None:
    ids = np.array([(0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (2, 3)] * 4)
    distances, is_same = np.linspace(1, 2, 24), ids[:, 0] == ids[:, 1]
    found = verification_intervals(distances, is_same, ids=ids, folds=2, num_resamples=400)
    assert 200 < found.accuracy.num_resamples < 400


def test_all_figures_are_finite_on_ties_and_extremes() -> None:
    is_same = np.arange(60) % 2 == 0
    for distances in (np.full(60, 1.0), np.where(is_same, 4.0, 0.0), np.where(is_same, 1e300, 5e-324)):
        found = verification_intervals(distances, is_same, num_resamples=40)
        for interval in (found.accuracy, found.auc, found.eer, found.tar_at_far[FAR]):
            assert 0 <= interval.low <= interval.high <= 1


@pytest.mark.slow
def test_intervals_over_pairs_cover_the_truth_as_often_as_they_say() -> None:
    """200 sets of 600 pairs at 95 %. A share has a standard error of 0.0154; allowed are three, 0.904 to 0.996.

    The accuracy may be covered always: a resample chooses its thresholds among fewer distinct pairs, so it spreads a
    little more than a new set does (about an eighth), and the interval is on the safe side.
    """
    truth = truths(0.5, 0.2, 0.2)
    truth["accuracy"] = float(np.mean([verify_distances(*draw(600, 10_000 + seed)).accuracy for seed in range(600)]))
    hits = []
    for seed in range(200):
        found = verification_intervals(*draw(600, 500 + seed), far_targets=(FAR,), num_resamples=300, seed=seed)
        hits.append(covered(found, truth))
    found_shares = shares(hits)
    assert found_shares.pop("accuracy") >= 0.904
    for name, share in found_shares.items():
        assert share == pytest.approx(0.95, abs=0.046), name


@pytest.mark.slow
def test_intervals_over_persons_cover_the_truth_where_those_over_pairs_are_too_narrow() -> None:
    """100 sets of 100 persons, each in 38 different pairs; a share has a standard error of 0.022, allowed are three."""
    effect, noise = 0.08, 0.1
    truth = truths(0.4, math.hypot(2 * effect, noise), math.hypot(math.sqrt(2) * effect, noise))
    over_pairs, over_persons = [], []
    for seed in range(100):
        distances, is_same, ids = draw_people(100, seed, effect, num_partners=19)
        settings: dict[str, Any] = {"far_targets": (FAR,), "num_resamples": 200, "folds": 2, "seed": seed}
        over_pairs.append(covered(verification_intervals(distances, is_same, **settings), truth))
        over_persons.append(covered(verification_intervals(distances, is_same, ids=ids, **settings), truth))
    for name, share in shares(over_pairs).items():
        assert share < 0.85, name
    for name, share in shares(over_persons).items():
        assert share >= 0.95 - 3 * 0.022, name


@pytest.mark.slow
def test_intervals_over_persons_are_on_the_safe_side_where_no_person_is_in_two_different_pairs() -> None:
    """80 sets in which pairs are independent: intervals over pairs are right, those over persons wider and sure."""
    size = 300
    left = np.arange(size)
    ids = np.concatenate([np.stack([left, left + size], axis=1), np.stack([left, left], axis=1) + 2 * size])
    is_same = ids[:, 0] == ids[:, 1]
    truth = truths(0.5, 0.2, 0.2)
    hits, ratios = [], []
    for seed in range(80):
        distances = np.random.default_rng(seed).normal(np.where(is_same, 1.35, 1.85), 0.2)
        settings: dict[str, Any] = {"far_targets": (FAR,), "num_resamples": 300, "folds": 2, "seed": seed}
        wide = verification_intervals(distances, is_same, ids=ids, **settings)
        plain = verification_intervals(distances, is_same, **settings)
        hits.append(covered(wide, truth))
        ratios.append((wide.auc.high - wide.auc.low) / (plain.auc.high - plain.auc.low))
    assert min(shares(hits).values()) >= 0.95
    assert 1.2 < float(np.mean(ratios)) < math.sqrt(3)
