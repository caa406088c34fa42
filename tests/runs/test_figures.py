"""Best, last and median figures, the order of metrics, and how figures are written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gkd.runs.figures import ACCURACY, Figures, better_end, figures, format_figure, main_metrics, metric_names
from gkd.runs.run import Run, read_run
from tests.runs.made_runs import line, write_run


def run_of(tmp_path: Path, *logged: dict[str, object]) -> Run:
    return read_run(write_run(tmp_path / "run", metrics=logged))


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("eval/lfw/accuracy", "high"),
        ("eval/ijbc/tar@far=0.0001", "high"),
        ("eval/lfw/auc", "high"),
        ("eval/lfw/accuracy_std", None),
        ("eval/lfw/threshold", None),
        ("eval/lfw/eer", "low"),
        ("eval/x/fnmr@fmr=0.001", "low"),
        ("loss/total", "low"),
        ("loss/gkd/primary", "low"),
        ("stats/target_cosine", "high"),
        ("time/images_per_second", "high"),
        ("accuracy", "high"),
        ("optim/lr", None),
        ("stats/gkd/group_size", None),
    ],
)
def test_better_end(name: str, end: str | None) -> None:
    assert better_end(name) == end


def test_best_is_the_first_of_the_best_end(tmp_path: Path) -> None:
    values = (0.5, 0.9, 0.9, 0.7)
    run = run_of(tmp_path, *(line(10 * (at + 1), eval__a__auc=v, loss__total=v, lr=v) for at, v in enumerate(values)))
    assert figures(run, "eval/a/auc") == Figures(0.9, 20, 0.7, 40, 0.8)
    assert figures(run, "loss/total") == Figures(0.5, 10, 0.7, 40, 0.8)
    assert figures(run, "lr") == Figures(None, None, 0.7, 40, 0.8)
    assert figures(run, "missing") is None


def test_values_that_are_not_finite_are_never_best(tmp_path: Path) -> None:
    values = (math.inf, 0.5, math.nan)
    found = figures(run_of(tmp_path, *(line(at, eval__a__auc=v) for at, v in enumerate(values))), "eval/a/auc")
    assert found is not None
    assert (found.best, found.best_step, found.median) == (0.5, 1, 0.5)
    assert math.isnan(found.last)
    only = figures(run_of(tmp_path, line(1, loss__total=math.nan)), "loss/total")
    assert only is not None
    assert (only.best, only.best_step, only.median) == (None, None, None)


def test_accuracy_is_the_mean_of_the_sets_where_all_were_evaluated(tmp_path: Path) -> None:
    run = run_of(
        tmp_path,
        line(10, eval__a__accuracy=0.5),
        line(20, eval__a__accuracy=0.6, eval__b__accuracy=0.8),
        line(30, eval__a__accuracy=0.9, eval__b__accuracy=0.3, eval__b__accuracy_std=1.0),
        line(40, eval__b__accuracy=1.0),
    )
    found = figures(run, ACCURACY)
    assert found is not None
    assert (found.best, found.best_step, found.last_step) == (pytest.approx(0.7), 20, 30)
    assert found.last == pytest.approx(0.6)
    assert figures(run_of(tmp_path, line(1, eval__a__accuracy=1.0), line(2, eval__b__accuracy=1.0)), ACCURACY) is None
    assert figures(run_of(tmp_path, line(1, loss__total=1.0)), ACCURACY) is None


def test_accuracy_of_infinite_values_is_no_figure(tmp_path: Path) -> None:
    found = figures(run_of(tmp_path, line(1, eval__a__accuracy=math.inf, eval__b__accuracy=-math.inf)), ACCURACY)
    assert found is not None
    assert found.best is None


def test_metrics_are_ordered_and_the_main_ones_chosen(tmp_path: Path) -> None:
    names = ("time__images_per_second", "epoch", "loss__total", "loss__gkd__weighted", "eval__b__accuracy", "optim__lr")
    run = run_of(tmp_path, line(1, **dict.fromkeys(names, 1.0), eval__a__accuracy_std=1.0))
    assert metric_names([run]) == [
        "eval/a/accuracy_std",
        "eval/b/accuracy",
        "loss/gkd/weighted",
        "loss/total",
        "optim/lr",
        "time/images_per_second",
        "epoch",
    ]
    assert main_metrics([run]) == ["eval/b/accuracy", "loss/total", "time/images_per_second"]
    two = run_of(tmp_path, line(1, eval__a__accuracy=1.0, eval__b__accuracy=1.0))
    assert main_metrics([two]) == ["accuracy", "eval/a/accuracy", "eval/b/accuracy"]


@pytest.mark.parametrize(
    ("name", "value", "text", "as_difference"),
    [
        ("eval/lfw/accuracy", 0.98765, "0.9877", "+0.9877"),
        ("accuracy", 1.0, "1.0000", "+1.0000"),
        ("loss/total", 12.3456, "12.35", "+12.35"),
        ("optim/lr", 0.00012345, "0.0001234", "+0.0001234"),
        ("time/images_per_second", 11084.4, "11,084", "+11,084"),
        ("loss/total", -2000.0, "-2,000", "-2,000"),
        ("loss/total", math.nan, "nan", "+nan"),
        ("loss/total", math.inf, "inf", "+inf"),
        ("loss/total", None, "-", "-"),
    ],
)
def test_figures_are_written_with_their_digits(name: str, value: float | None, text: str, as_difference: str) -> None:
    assert format_figure(name, value) == text
    assert format_figure(name, value, is_difference=True) == as_difference
