"""What the page's script draws: curves with few enough points, and the settings in which the runs differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.runs.config_leaves import differences
from gkd.runs.figures import ACCURACY, LOSS, LR, SPEED, better_end, curve_of, figures, metric_names
from gkd.runs.run import Run
from gkd.runs.series import thinned, training_hours

MAX_POINTS = 500
MIN_POINTS = 60
MAX_POINTS_IN_ALL = 1_500_000
MAX_METRICS = 400
MAX_DIFFERENCES = 400
# More curves than these in one picture are a thicket, so that at first only the best are switched on.
MAX_ON_AT_FIRST = 8


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Plain values for JSON; a value that is not finite is null, and texts are as the files hold them."""
    names = metric_names(runs)[:MAX_METRICS]
    num_curves = sum(curve_of(run.metrics, name) is not None for run in runs for name in names)
    max_points = max(MIN_POINTS, min(MAX_POINTS, MAX_POINTS_IN_ALL // max(1, num_curves)))
    return {
        "metrics": [{"name": name, "better": better_end(name)} for name in names],
        "main": [names.index(name) for name in _main(names)],
        "runs": [_run_data(run, names, max_points) for run in runs],
        "on": _on_at_first(runs),
        "settings": _settings(runs),
    }


def _main(names: Sequence[str]) -> list[str]:
    accuracies = [name for name in names if name.startswith("eval/") and name.endswith("/accuracy")]
    shown = [LOSS, ACCURACY, *accuracies[:6]]
    shown += ["loss/classification", "stats/target_cosine", "stats/accuracy", LR, SPEED]
    return [name for name in shown if name in names]


def _run_data(run: Run, names: Sequence[str], max_points: int) -> dict[str, Any]:
    axes: dict[bytes, int] = {}
    axis_data: list[dict[str, Any]] = []
    curves = {}
    step_seconds = run.metrics.curves.get("time/step_seconds")
    for place, name in enumerate(names):
        curve = curve_of(run.metrics, name)
        if curve is None:
            continue
        steps, values = thinned(curve, max_points)
        key = steps.tobytes()
        if key not in axes:
            axes[key] = len(axis_data)
            hours = training_hours(steps, step_seconds)
            axis_data.append({"steps": steps.tolist(), "hours": None if hours is None else _rounded(hours)})
        curves[place] = [axes[key], _rounded(values)]
    return {"name": run.name, "epochsPerStep": _epochs_per_step(run), "axes": axis_data, "curves": curves}


def _epochs_per_step(run: Run) -> float | None:
    curve = run.metrics.curves.get("epoch")
    if curve is None or not len(curve.finite.steps) or not curve.finite.steps[-1]:
        return None
    finite = curve.finite
    return float(finite.values[-1] / finite.steps[-1])


def _rounded(values: npt.NDArray[np.float64]) -> list[float | None]:
    """Six digits, which is more than a picture shows."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]


def _on_at_first(runs: Sequence[Run]) -> list[int]:
    if len(runs) <= MAX_ON_AT_FIRST:
        return list(range(len(runs)))

    def key(place: int) -> tuple[bool, float, int]:
        found = figures(runs[place], ACCURACY)
        best = None if found is None else found.best
        return (best is None, -(best or 0.0), place)

    return sorted(sorted(range(len(runs)), key=key)[:MAX_ON_AT_FIRST])


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The keys that differ; each text once, and for each run the place of its own."""
    settings = []
    for one in differences([run.config for run in runs])[:MAX_DIFFERENCES]:
        texts = list(dict.fromkeys(one.values))
        settings.append({"key": one.key, "texts": texts, "places": [texts.index(value) for value in one.values]})
    return settings
