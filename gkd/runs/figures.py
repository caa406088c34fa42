"""What a curve says in one figure: the best value where one end is better, the last, the middle one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gkd.runs.metrics_file import Curve, Metrics
from gkd.runs.run import Run

ACCURACY = "accuracy"  # the mean accuracy over all evaluation sets, by which a run judges its checkpoints
LOSS = "loss/total"
CROSS_ENTROPY = "loss/classification"  # can be compared where runs have other terms
LR = "optim/lr"
SPEED = "time/images_per_second"

_LOWER_IS_BETTER = ("eer", "fnmr", "frr", "fnir", "fpir", "far")


@dataclass(frozen=True)
class Figures:
    """Of a curve: its best value and the step that reached it first, its last value and step, its median.

    `best` is None where neither end is better. Values that are not finite count for none of them but `last`.
    """

    best: float | None
    best_step: int | None
    last: float
    last_step: int
    median: float | None


def better_end(name: str) -> Literal["high", "low"] | None:
    """Which end of metric `name` is the better one, where one is."""
    last = name.rsplit("/", 1)[-1]
    if last.endswith(("_std", "threshold")):
        return None
    if name.startswith("eval/"):
        return "low" if last.split("@")[0] in _LOWER_IS_BETTER else "high"
    if name.startswith("loss/"):
        return "low"
    return "high" if name in (ACCURACY, SPEED, "stats/accuracy", "stats/target_cosine") else None


def curve_of(metrics: Metrics, name: str) -> Curve | None:
    """The curve of metric `name`; `ACCURACY` is made from those of the sets."""
    return mean_accuracy(metrics) if name == ACCURACY else metrics.curves.get(name)


def mean_accuracy(metrics: Metrics) -> Curve | None:
    """The mean accuracy over all sets, at the steps at which each of them was evaluated."""
    curves = [curve for name, curve in metrics.curves.items() if _is_accuracy_of_set(name)]
    if not curves:
        return None
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps, assume_unique=True)
    if not len(steps):
        return None
    values = [curve.values[np.searchsorted(curve.steps, steps)] for curve in curves]
    with np.errstate(invalid="ignore"):  # of infinite values
        return Curve(steps, np.mean(values, axis=0))


def _is_accuracy_of_set(name: str) -> bool:
    return name.startswith("eval/") and name.endswith("/accuracy") and name.count("/") == 2


def figures(run: Run, name: str) -> Figures | None:
    """The figures of metric `name`, or None where the run has none."""
    curve = curve_of(run.metrics, name)
    if curve is None or not len(curve.steps):
        return None
    finite, end = curve.finite, better_end(name)
    best = best_step = median = None
    if len(finite.steps):
        median = float(np.median(finite.values))
        if end is not None:
            place = int(np.argmax(finite.values) if end == "high" else np.argmin(finite.values))
            best, best_step = float(finite.values[place]), int(finite.steps[place])
    return Figures(best, best_step, float(curve.values[-1]), int(curve.steps[-1]), median)


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Every metric of `runs`: the mean over several sets, the evaluations, the losses, then the others by name."""
    names = {name for run in runs for name in run.metrics.curves}
    # The mean over one set only would be told twice.
    if sum(_is_accuracy_of_set(name) for name in names) > 1:
        names.add(ACCURACY)
    return sorted(names, key=lambda name: (_rank(name), name))


def main_metrics(runs: Sequence[Run]) -> list[str]:
    """What one looks at first: accuracies and TARs of the sets, the total loss and its parts, speed."""
    known = metric_names(runs)
    of_sets = [name for name in known if name.startswith("eval/") and better_end(name) is not None]
    losses = [name for name in known if name.startswith("loss/") and not name.endswith("/weighted")]
    first = [ACCURACY] if ACCURACY in known else []
    return [*first, *of_sets, *losses, *(name for name in (SPEED,) if name in known)]


def _rank(name: str) -> int:
    if name == ACCURACY:
        return 0
    groups = ("eval/", "loss/", "stats/", "optim/", "time/")
    return next((1 + place for place, group in enumerate(groups) if name.startswith(group)), len(groups) + 1)


def format_figure(name: str, value: float | None, *, is_difference: bool = False) -> str:
    """A value with the digits that its metric deserves; `-` for none."""
    if value is None:
        return "-"
    sign = "+" if is_difference else ""
    if not math.isfinite(value):
        return f"{value:{sign}}"
    if _is_share(name):
        return f"{value:{sign}.4f}"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.4g}"


def _is_share(name: str) -> bool:
    return name == ACCURACY or name.startswith("eval/") or name in ("stats/accuracy", "stats/target_cosine")
