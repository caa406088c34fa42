"""A curve with few enough points to draw: neighbours are replaced by their mean."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gkd.runs.metrics_file import Curve


def thinned(curve: Curve, max_points: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The (P,) steps and values of `curve`, where it has more than `max_points` as means of equal groups of neighbours.

    A group has the step of its last point, so that the curve ends where the run does. Values that are not finite are
    NaN; a group is NaN only where all its values are.
    """
    steps = curve.steps
    values = np.where(np.isfinite(curve.values), curve.values, np.nan)
    if len(steps) <= max_points:
        return steps, values
    size = -(-len(steps) // max_points)
    starts = np.arange(0, len(steps), size)
    is_known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(is_known, values, 0.0), starts)
    counts = np.add.reduceat(is_known.astype(np.int64), starts)
    means = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return steps[np.minimum(starts + size, len(steps)) - 1], means


def training_hours(metrics_steps: npt.NDArray[np.int64], step_seconds: Curve | None) -> npt.NDArray[np.float64] | None:
    """Hours of training up to each of (P,) steps, from the logged seconds a step; evaluation and pauses do not count.

    None where the run did not log them.
    """
    if step_seconds is None:
        return None
    known = step_seconds.finite
    if not len(known.steps):
        return None
    spans = np.diff(known.steps, prepend=0) * known.values
    hours = np.cumsum(spans) / 3600
    return np.interp(metrics_steps, np.concatenate(([0], known.steps)), np.concatenate(([0.0], hours)))
