"""The numbers that a report's page carries: operating points, counts at the slider's thresholds, bins, costs.

Everything is whole numbers (differences of neighbours, which are short) where it must be exact.

Shapes: P pairs, K operating points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.evaluation.folds import THRESHOLDS
from gkd.evaluation.report_inputs import DegradationCurve, ReportEntry, ReportModel, ReportSet
from gkd.evaluation.tar_far import RocCurve, roc_curve
from gkd.evaluation.verification import judge_pairs

STEPS_A_UNIT = 1000
"""The slider moves the cosine by thousandths: step k accepts the pairs whose cosine is above 1 - k / 1000."""

_NUM_STEPS = 2 * STEPS_A_UNIT
_GRID_STRIDE = _NUM_STEPS // len(THRESHOLDS)
MAX_CURVE_POINTS = 2000
_EXACT_ERRORS = 100  # every operating point with so few false accepts is kept
_COSINE_UNIT = 10_000

_NUM_QUALITY_BINS = 6
_YAW_EDGES = (0.0, 10.0, 20.0, 30.0, 45.0, 60.0, 90.0, 180.0)
_Z_95 = 1.959964
_MIN_JUDGED_PAIRS = 10

Counts = npt.NDArray[np.int64]


def embedded_data(
    models: Sequence[ReportModel], sets: Sequence[ReportSet], entries: Sequence[ReportEntry]
) -> dict[str, Any]:
    """Plain values for `json.dumps`; models and sets are named once and pointed to by their place."""
    model_place = {model.name: place for place, model in enumerate(models)}
    set_place = {one.name: place for place, one in enumerate(sets)}
    places = [(set_place[entry.set], model_place[entry.model], entry) for entry in entries]
    return {
        "models": [{"name": model.name, "costs": _costs(model)} for model in models],
        "sets": [
            {"name": one.name, "num_same": one.num_same, "num_different": one.num_pairs - one.num_same} for one in sets
        ],
        "entries": [
            {"set": place, "model": model, **_entry_data(entry)}
            for place, model, entry in sorted(places, key=lambda item: item[:2])
        ],
    }


def step_thresholds() -> npt.NDArray[np.float64]:
    """The squared distance below which step k accepts a pair, (2001,); every fifth is a threshold of the protocol."""
    thresholds: npt.NDArray[np.float64] = np.arange(_NUM_STEPS + 1, dtype=np.float64) * (2 / STEPS_A_UNIT)
    return thresholds


def newly_accepted(distances: npt.NDArray[np.float64]) -> Counts:
    """How many pairs each step is the first to accept, (2001,); a distance of 4 is never accepted."""
    first_accepting = np.searchsorted(step_thresholds(), distances, side="right")
    counts = np.bincount(first_accepting, minlength=_NUM_STEPS + 2)
    return counts[: _NUM_STEPS + 1].astype(np.int64)


def protocol_step(distances: npt.NDArray[np.float64], is_same: npt.NDArray[np.bool_]) -> int:
    """The step of the protocol's first threshold with the best accuracy on all pairs."""
    gains = newly_accepted(distances[is_same]) - newly_accepted(distances[~is_same])
    on_grid = np.cumsum(gains)[: len(THRESHOLDS) * _GRID_STRIDE : _GRID_STRIDE]
    return int(np.argmax(on_grid)) * _GRID_STRIDE


def thin_curve(curve: RocCurve, max_points: int = MAX_CURVE_POINTS) -> npt.NDArray[np.intp]:
    """Places of the operating points that draw the curve as steps; all of its corners where they are few enough.

    A corner is the best TAR at its FAR, and better than at any smaller FAR: the corners alone give back the steps.
    Where there are more than `max_points`, those are kept at which the false accepts or the misses (both on
    logarithmic scales) or the TAR (on a linear one) have changed by less than a line of a plot is wide, and always
    those with up to 100 false accepts.
    """
    corners = _corners(curve)
    if len(corners) <= max_points:
        return corners
    is_exact = curve.num_false_accepts[corners] <= _EXACT_ERRORS
    ratio = 1.002
    while True:
        kept = corners[is_exact | _changes(curve, corners, ratio)]
        if len(kept) <= max_points or ratio > 2:
            return kept
        ratio = 1 + (ratio - 1) * 1.25


def _corners(curve: RocCurve) -> npt.NDArray[np.intp]:
    false_accepts, true_accepts = curve.num_false_accepts, curve.num_true_accepts
    last_at_far = np.flatnonzero(np.append(false_accepts[1:] != false_accepts[:-1], True))
    heights = true_accepts[last_at_far]
    corners: npt.NDArray[np.intp] = last_at_far[np.append(True, heights[1:] > heights[:-1])]
    return corners


def _changes(curve: RocCurve, places: npt.NDArray[np.intp], ratio: float) -> npt.NDArray[np.bool_]:
    """Whether a point lies in another cell of the scales than the one before it; the first and the last always count.

    A cell of a logarithmic scale spans `ratio`, one of the linear scale as much at its end.
    """
    false_accepts, true_accepts = curve.num_false_accepts[places], curve.num_true_accepts[places]
    is_changed = np.zeros(len(places), dtype=np.bool_)
    is_changed[[0, -1]] = True
    for value in (
        np.log1p(false_accepts) / math.log(ratio),
        np.log1p(curve.num_same - true_accepts) / math.log(ratio),
        true_accepts / curve.num_same / (ratio - 1),
    ):
        cell = np.floor(value)
        is_changed[1:] |= cell[1:] != cell[:-1]
    return is_changed


def wilson_interval(num_right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    share, z2 = num_right / total, _Z_95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z_95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return centre - half if num_right else 0.0, centre + half if num_right < total else 1.0


def quality_bins(entry: ReportEntry) -> list[dict[str, Any]]:
    """Accuracy in bins of about equally many pairs, from the worst quality to the best; equal values stay together."""
    if entry.pair_quality is None:
        return []
    quality = np.asarray(entry.pair_quality, dtype=np.float64)
    known = quality[np.isfinite(quality)]
    if len(known) == 0:
        return []
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _NUM_QUALITY_BINS + 1)))
    return _binned(entry, quality, edges if len(edges) > 1 else np.repeat(edges, 2))


def yaw_bins(entry: ReportEntry) -> list[dict[str, Any]]:
    """Accuracy in fixed bins of the absolute yaw in degrees; bins without a pair are left out."""
    if entry.pair_yaw is None:
        return []
    return _binned(entry, np.abs(np.asarray(entry.pair_yaw, dtype=np.float64)), np.array(_YAW_EDGES))


def _binned(
    entry: ReportEntry, values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]
) -> list[dict[str, Any]]:
    if len(values) < _MIN_JUDGED_PAIRS:
        return []
    is_right = judge_pairs(np.asarray(entry.distances, dtype=np.float64), np.asarray(entry.is_same))
    last = len(edges) - 2
    bins = []
    for place, (low, high) in enumerate(pairwise(edges.tolist())):
        inside = (values >= low) & ((values <= high) if place == last else (values < high))
        total, num_right = int(inside.sum()), int(is_right[inside].sum())
        if total:
            ends = [round(end, 5) for end in wilson_interval(num_right, total)]
            span = [float(f"{low:.4g}"), float(f"{high:.4g}")]
            bins.append({"bin": place, "span": span, "right": num_right, "total": total, "interval": ends})
    return bins


def _entry_data(entry: ReportEntry) -> dict[str, Any]:
    distances, is_same = np.asarray(entry.distances, dtype=np.float64), np.asarray(entry.is_same)
    data: dict[str, Any] = {
        "curve": _curve_data(roc_curve(-distances, is_same)),
        "steps": _steps_data(distances, is_same),
        "start": protocol_step(distances, is_same),
    }
    accuracy = entry.figures.get("accuracy")
    if accuracy is not None:
        data["accuracy"] = float(accuracy)
    bins = {"quality": quality_bins(entry), "yaw": yaw_bins(entry)}
    data |= {name: found for name, found in bins.items() if found}
    if entry.degraded:
        data["degraded"] = {name: _degraded_data(curve) for name, curve in entry.degraded.items()}
    return data


def _degraded_data(curve: DegradationCurve) -> dict[str, Any]:
    points = [[point.level, round(point.accuracy, 6), round(point.accuracy_std, 6)] for point in curve.points]
    return {"unit": curve.unit, "points": points}


def _curve_data(curve: RocCurve) -> dict[str, list[int]]:
    places = thin_curve(curve)
    cosines = 1 + np.clip(curve.thresholds[places], -4, 0.0002) / 2  # "accept nothing" shows as above 1
    return {
        "false_accepts": _differences(curve.num_false_accepts[places]),
        "true_accepts": _differences(curve.num_true_accepts[places]),
        "cosines": _differences(np.round(cosines * _COSINE_UNIT).astype(np.int64)),
    }


def _steps_data(distances: npt.NDArray[np.float64], is_same: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Counts that each step adds, from the first step on that accepts anything; zeros at the end are left out."""
    same, different = newly_accepted(distances[is_same]), newly_accepted(distances[~is_same])
    used = np.flatnonzero(same + different)
    first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    return {"first": first, "same": same[first:end].tolist(), "different": different[first:end].tolist()}


def _differences(values: Counts) -> list[int]:
    found: list[int] = np.diff(values, prepend=0).tolist()
    return found


def _costs(model: ReportModel) -> dict[str, float]:
    names = ("num_parameters", "gmacs", "file_bytes", "images_per_second")
    return {name: float(getattr(model, name)) for name in names if getattr(model, name) is not None}
