"""Curves thinned for a picture, against loops; hours of training."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gkd.runs.metrics_file import Curve
from gkd.runs.series import thinned, training_hours


def curve(values: list[float], first: int = 1) -> Curve:
    return Curve(np.arange(first, first + len(values), dtype=np.int64), np.array(values))


def reference(values: list[float], max_points: int) -> tuple[list[int], list[float]]:
    size = math.ceil(len(values) / max_points)
    steps, means = [], []
    for start in range(0, len(values), size):
        group = values[start : start + size]
        known = [value for value in group if math.isfinite(value)]
        steps.append(start + len(group))
        means.append(sum(known) / len(known) if known else math.nan)
    return steps, means


@pytest.mark.parametrize("num_values", [1, 5, 10, 11, 19, 20, 21, 99, 1000])
@pytest.mark.parametrize("share_bad", [0.0, 0.5, 1.0])
def test_groups_are_means_of_what_is_finite(num_values: int, share_bad: float) -> None:
    random = np.random.default_rng(num_values)
    values = random.normal(size=num_values)
    values[random.random(num_values) < share_bad] = np.nan
    values[random.random(num_values) < share_bad / 4] = np.inf
    steps, means = thinned(curve(values.tolist()), 10)
    expected_steps, expected = reference(values.tolist(), 10)
    assert steps.tolist() == expected_steps
    np.testing.assert_allclose(means, expected, rtol=1e-12)
    assert len(steps) <= 10
    assert steps[-1] == num_values


def test_short_curve_stays_as_it_is() -> None:
    steps, values = thinned(curve([1.0, math.inf, 3.0], first=7), 3)
    assert steps.tolist() == [7, 8, 9]
    np.testing.assert_array_equal(values, [1.0, np.nan, 3.0])


def test_hours_add_up_the_seconds_of_the_steps() -> None:
    seconds = Curve(np.array([100, 300, 400]), np.array([1.0, 2.0, 0.5]))
    hours = training_hours(np.array([0, 50, 100, 200, 400, 500]), seconds)
    assert hours is not None
    np.testing.assert_allclose(hours * 3600, [0, 50, 100, 300, 550, 550])


def test_hours_are_not_known_without_seconds() -> None:
    steps = np.array([1, 2])
    assert training_hours(steps, None) is None
    assert training_hours(steps, Curve(np.array([1]), np.array([np.nan]))) is None
