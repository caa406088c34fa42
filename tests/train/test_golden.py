"""The loss curves of three small runs are those recorded in `tests/golden`; see `tests.golden.curves`."""

from __future__ import annotations

import json
import logging

import pytest

from tests.golden import curves


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Both curves, run here and now. The tool takes over the root logger, which others want back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        return dict(curves.curves(tmp_path_factory.mktemp("golden")))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)


@pytest.mark.parametrize("name", ["classification", "gkd", "gkd_sharded"])
def test_the_curve_is_the_recorded_one(measured, name):
    recorded = curves.read(name)
    steps = measured[name]
    assert len(steps) == len(recorded["steps"]) == curves.NUM_STEPS
    where = "record it anew only if the change is meant: see tests/golden/curves.py"
    if recorded["environment"] == curves.environment():
        assert steps == recorded["steps"], where
    for step, (now, then) in enumerate(zip(steps, recorded["steps"], strict=True), start=1):
        assert now == pytest.approx(then, rel=curves.RELATIVE_TOLERANCE, abs=1e-6), f"step {step}: {where}"


def test_the_recorded_curves_say_something():
    """A loss that falls, terms that are not constant, and a distillation weight that rises from 0."""
    for name in ("classification", "gkd", "gkd_sharded"):
        totals = [step["loss/classification"] for step in curves.read(name)["steps"]]
        assert sum(totals[-5:]) < 0.5 * sum(totals[:5]), name
        assert all(step["optim/lr"] > 0 for step in curves.read(name)["steps"])
    distilled = curves.read("gkd")["steps"]
    assert [distilled[step]["stats/gkd/weight"] for step in (0, 6, 12)] == [0.0, 0.5, 1.0]
    # Of so few classes the groups are at times the target alone, or all; not at most steps.
    for term in ("primary", "binary"):
        assert sum(step[f"loss/gkd/{term}"] > 0 for step in distilled) > 20, term


def test_a_sharded_head_has_the_curve_of_the_softmax_head():
    """To rounding, which this run at a high rate lets grow."""
    both = [curves.read(name)["steps"][:3] for name in ("gkd", "gkd_sharded")]
    for one, other in zip(*both, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


def test_a_recorded_curve_reads_back_to_the_last_bit(tmp_path):
    steps = [{"loss/total": 0.1 + 0.2, "optim/lr": 1e-17}, {"loss/total": 1 / 3, "optim/lr": 5e-324}]
    curves.write("again", steps, tmp_path)
    read = json.loads((tmp_path / "again.json").read_text())
    assert read == {"environment": curves.environment(), "steps": steps}
