"""The numbers inside a report, against counts made one by one."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from gkd.evaluation import roc_curve, verify_distances
from gkd.evaluation.html_report import ReportEntry, ReportModel, ReportSet
from gkd.evaluation.report_data import (
    MAX_CURVE_POINTS,
    embedded_data,
    newly_accepted,
    protocol_step,
    quality_bins,
    step_thresholds,
    thin_curve,
    wilson_interval,
    yaw_bins,
)
from gkd.evaluation.verification import THRESHOLDS, judge_pairs
from tests.evaluation.report_example import drawn_cosines, example


def summed(differences: list[int]) -> list[int]:
    return np.cumsum(differences).tolist()


def entry_of(distances: np.ndarray, is_same: np.ndarray, **more: Any) -> ReportEntry:
    return ReportEntry("m", "s", {}, distances, is_same, **more)


def tar_at_count(false_accepts: np.ndarray, true_accepts: np.ndarray, count: int) -> int:
    """The most true accepts with at most so many false ones."""
    return max((int(t) for f, t in zip(false_accepts, true_accepts, strict=True) if f <= count), default=-1)


def test_every_fifth_step_is_a_threshold_of_the_protocol() -> None:
    thresholds = step_thresholds()
    assert len(thresholds) == 2001
    assert (thresholds[:2000:5] == THRESHOLDS).all()
    assert (np.diff(thresholds) > 0).all()
    assert np.allclose(thresholds, np.linspace(0, 4, 2001), atol=1e-12)


def test_steps_count_what_comparing_each_pair_counts() -> None:
    generator = np.random.default_rng(0)
    ties = step_thresholds()[generator.integers(0, 2001, 300)]
    distances = np.concatenate((generator.uniform(0, 4, 300), ties, [0.0, 4.0, np.nextafter(2.0, 3), 2.0]))
    counts = np.cumsum(newly_accepted(distances))
    assert counts.tolist() == [int((distances < threshold).sum()) for threshold in step_thresholds()]


def test_the_first_threshold_shown_is_that_of_the_protocol() -> None:
    for seed in range(8):
        cosines, is_same = drawn_cosines(0.4, 600, 250, seed)
        result = verify_distances(2 - 2 * cosines, is_same)
        assert step_thresholds()[protocol_step(result.distances, is_same)] == result.threshold


@pytest.mark.parametrize("decimals", [1, 2, 8])
def test_a_short_curve_is_kept_whole(decimals: int) -> None:
    cosines, is_same = drawn_cosines(0.2, 300, 130, 0)
    curve = roc_curve(np.round(cosines, decimals), is_same)
    places = thin_curve(curve)
    kept = curve.num_false_accepts[places], curve.num_true_accepts[places]
    for count in range(curve.num_different + 1):
        full = tar_at_count(curve.num_false_accepts, curve.num_true_accepts, count)
        assert tar_at_count(*kept, count) == full
    assert (np.diff(kept[0]) > 0).all()
    assert (np.diff(kept[1]) > 0).all()


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_a_long_curve_is_thinned_without_a_visible_change(strength: float) -> None:
    cosines, is_same = drawn_cosines(strength, 200_000, 90_000, 0, spread=0.25)
    curve = roc_curve(cosines, is_same)
    places = thin_curve(curve)
    assert len(places) <= MAX_CURVE_POINTS
    kept_false, kept_true = curve.num_false_accepts[places], curve.num_true_accepts[places]
    for count in range(101):
        shown = curve.num_true_accepts[np.searchsorted(curve.num_false_accepts, count, side="right") - 1]
        assert kept_true[np.searchsorted(kept_false, count, side="right") - 1] == shown
    # Read off at each false accept rate: less than a line is wide, on the linear scale and on that of the misses.
    counts = np.arange(curve.num_different + 1)
    full = curve.num_true_accepts[np.searchsorted(curve.num_false_accepts, counts, side="right") - 1]
    thin = kept_true[np.searchsorted(kept_false, counts, side="right") - 1]
    assert (np.abs(full - thin) <= 0.005 * curve.num_same).all()
    misses, thin_misses = curve.num_same - full, curve.num_same - thin
    assert (np.abs(misses - thin_misses) <= 0.012 * (misses + 1)).all()


@pytest.mark.parametrize("scores", [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
def test_a_curve_of_two_pairs_keeps_its_corners(scores: list[float]) -> None:
    curve = roc_curve(np.array(scores), np.array([True, False]))
    places = thin_curve(curve)
    assert curve.num_true_accepts[places][-1] == 1
    assert curve.num_false_accepts[places][0] == 0


@pytest.mark.parametrize(("num_right", "total"), [(0, 5), (5, 5), (1, 3), (970, 1000)])
def test_wilson_interval_solves_its_equation(num_right: int, total: int) -> None:
    share = num_right / total
    for end in wilson_interval(num_right, total):
        assert 0 <= end <= 1
        if end not in (0.0, 1.0):
            distance = abs(share - end) / math.sqrt(end * (1 - end) / total)
            assert distance == pytest.approx(1.959964, abs=1e-5)


def test_quality_bins_split_the_known_pairs_evenly() -> None:
    cosines, is_same = drawn_cosines(0.3, 600, 300, 0)
    quality = np.random.default_rng(1).normal(size=600)
    quality[:60] = np.nan
    entry = entry_of(2 - 2 * cosines, is_same, pair_quality=quality)
    bins = quality_bins(entry)
    assert [one["bin"] for one in bins] == list(range(6))
    assert [one["total"] for one in bins] == [90] * 6
    is_right = judge_pairs(entry.distances, is_same)
    ranked = [place for place in np.argsort(quality) if np.isfinite(quality[place])]
    for one in bins:
        of_bin = ranked[90 * one["bin"] : 90 * one["bin"] + 90]
        assert one["right"] == sum(int(is_right[place]) for place in of_bin)
        assert one["interval"][0] <= one["right"] / 90 <= one["interval"][1]


def test_equal_qualities_make_one_bin_and_unknown_ones_none() -> None:
    cosines, is_same = drawn_cosines(0.3, 60, 30, 0)
    distances = 2 - 2 * cosines
    bins = quality_bins(entry_of(distances, is_same, pair_quality=np.ones(60)))
    assert [one["total"] for one in bins] == [60]
    assert quality_bins(entry_of(distances, is_same, pair_quality=np.full(60, np.nan))) == []
    assert quality_bins(entry_of(distances, is_same)) == []
    assert yaw_bins(entry_of(distances, is_same)) == []


def test_yaw_bins_take_the_absolute_angle() -> None:
    cosines, is_same = drawn_cosines(0.3, 40, 20, 0)
    yaw = np.array([-5.0, 5.0, 10.0, -29.9, 45.0, np.nan, 89.9, -90.0] * 5)
    bins = yaw_bins(entry_of(2 - 2 * cosines, is_same, pair_yaw=yaw))
    assert [(one["span"], one["total"]) for one in bins] == [
        ([0.0, 10.0], 10),
        ([10.0, 20.0], 5),
        ([20.0, 30.0], 5),
        ([45.0, 60.0], 5),
        ([60.0, 90.0], 5),
        ([90.0, 180.0], 5),
    ]


def test_too_few_pairs_for_the_folds_are_not_binned() -> None:
    yaw = np.zeros(9)
    assert yaw_bins(entry_of(np.linspace(0, 1, 9), np.arange(9) < 4, pair_yaw=yaw)) == []


def test_embedded_counts_are_those_of_the_distances() -> None:
    report = example()
    data = embedded_data(report["models"], report["sets"], report["entries"])
    for found, entry in zip(data["entries"], report["entries"], strict=True):
        assert data["sets"][found["set"]]["name"] == entry.set
        assert data["models"][found["model"]]["name"] == entry.model
        curve = roc_curve(-entry.distances, entry.is_same)
        false_accepts, true_accepts = (summed(found["curve"][key]) for key in ("false_accepts", "true_accepts"))
        for count in range(0, curve.num_different + 1, 7):
            full = tar_at_count(curve.num_false_accepts, curve.num_true_accepts, count)
            assert tar_at_count(np.array(false_accepts), np.array(true_accepts), count) == full
        steps = found["steps"]
        for kind, distances in (
            ("same", entry.distances[entry.is_same]),
            ("different", entry.distances[~entry.is_same]),
        ):
            counts = [0] * steps["first"] + steps[kind]
            counts = summed(counts + [0] * (2001 - len(counts)))
            assert counts == [int((distances < threshold).sum()) for threshold in step_thresholds()]


def test_cosines_of_the_curve_accept_what_it_says() -> None:
    cosines, is_same = np.round(drawn_cosines(0.3, 400, 200, 0)[0], 4), np.arange(400) % 2 == 0
    one = ReportSet("s", 400, 200)
    data = embedded_data([ReportModel("m")], [one], [entry_of(2 - 2 * cosines, is_same)])
    curve = data["entries"][0]["curve"]
    points = zip(*(summed(curve[key]) for key in ("false_accepts", "true_accepts", "cosines")), strict=True)
    for false_accepts, true_accepts, cosine in points:
        accepted = cosines * 10_000 >= cosine - 0.01
        assert ((accepted & ~is_same).sum(), (accepted & is_same).sum()) == (false_accepts, true_accepts)


def test_nothing_accepted_has_a_threshold_above_all_cosines() -> None:
    distances, is_same = np.array([0.0] + [0.5] * 6 + [1.0] * 6), np.array([False] + [True] * 6 + [False] * 6)
    data = embedded_data([ReportModel("m")], [ReportSet("s", 13, 6)], [entry_of(distances, is_same)])
    assert summed(data["entries"][0]["curve"]["cosines"])[0] == 10_001


def test_opposite_embeddings_are_never_accepted() -> None:
    distances, is_same = np.full(12, 4.0), np.arange(12) % 2 == 0
    data = embedded_data([ReportModel("m")], [ReportSet("s", 12, 6)], [entry_of(distances, is_same)])
    assert data["entries"][0]["steps"] == {"first": 0, "same": [], "different": []}


def test_numpy_numbers_and_missing_costs_can_be_written() -> None:
    cosines, is_same = drawn_cosines(0.3, 60, 30, 0)
    entry = ReportEntry("m", "s", {"accuracy": np.float32(0.5)}, (2 - 2 * cosines).astype(np.float32), is_same)
    model = ReportModel("m", gmacs=np.float32(1.5), num_parameters=3)
    data = embedded_data([model], [ReportSet("s", 60, 30)], [entry])
    assert json.loads(json.dumps(data)) == data
    assert data["models"][0]["costs"] == {"num_parameters": 3.0, "gmacs": 1.5}


def test_entries_come_in_the_order_of_the_page() -> None:
    report = example()
    shuffled = list(reversed(report["entries"]))
    data = embedded_data(report["models"], report["sets"], shuffled)
    places = [(entry["set"], entry["model"]) for entry in data["entries"]]
    assert all(before < after for before, after in pairwise(places))
