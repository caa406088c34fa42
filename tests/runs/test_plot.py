"""The PNG of curves: what is drawn, and names that would be read as formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import ConfigError
from gkd.runs import plot
from gkd.runs.plot import MAX_PANELS, panels, plot_runs
from gkd.runs.run import read_runs
from tests.runs.made_runs import line, lines, write_run

PNG = b"\x89PNG\r\n\x1a\n"


class Spy:
    """Keeps the figure that is saved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from matplotlib.figure import Figure

        savefig = Figure.savefig

        def keep(figure: Any, *arguments: Any, **named: Any) -> None:
            self.figure = figure
            savefig(figure, *arguments, **named)

        monkeypatch.setattr(Figure, "savefig", keep)


def test_panels_hold_the_curves_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = read_runs([write_run(tmp_path / name, metrics=lines(loss=loss)) for name, loss in (("a", 1.0), ("b", 2.0))])
    spy = Spy(monkeypatch)
    plot_runs(runs, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)
    titles = [axes.get_title() for axes in spy.figure.axes]
    assert titles == ["loss/total", "eval/lfw/accuracy", "optim/lr", "time/images_per_second"]
    for axes_line, run in zip(spy.figure.axes[0].lines, runs, strict=True):
        np.testing.assert_array_equal(axes_line.get_xdata(), run.metrics.curves["loss/total"].steps)
        np.testing.assert_array_equal(axes_line.get_ydata(), run.metrics.curves["loss/total"].values)
    colors = {axes_line.get_color() for axes_line in spy.figure.axes[0].lines}
    assert len(colors) == 2
    assert [text.get_text() for text in spy.figure.legends[0].get_texts()] == ["a", "b"]


def test_named_metrics_are_drawn_alone_and_bounded(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a")])
    assert panels(runs, ["epoch", "optim/lr"]) == ["epoch", "optim/lr"]
    assert len(panels(runs, [f"m{place}" for place in range(50)])) == MAX_PANELS


def test_names_are_no_formulas_and_none_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["$x^{$", "_hidden", "\N{GRINNING FACE}", "n" * 90]
    runs = read_runs([write_run(tmp_path / name, metrics=[line(1, loss__total=1.0)]) for name in names])
    spy = Spy(monkeypatch)
    plot_runs(runs, tmp_path / "out.png")
    assert [text.get_text() for text in spy.figure.legends[0].get_texts()] == [*names[:3], "n" * 47 + "…"]


def test_hostile_metric_name_is_drawn(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", metrics=[{"step": 1, "$\\frac{": 1.0, "_": 2.0}])])
    plot_runs(runs, tmp_path / "out.png", ["$\\frac{", "_"])
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_values_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    metrics = [line(step, loss__total=value) for step, value in enumerate((math.nan, 1e308, -math.inf, 2.0))]
    plot_runs(read_runs([write_run(tmp_path / "a", metrics=metrics)]), tmp_path / "out.png")
    only = [line(1, loss__total=math.nan)]
    plot_runs(read_runs([write_run(tmp_path / "b", metrics=only)]), tmp_path / "out.png")


def test_long_curves_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "MAX_POINTS", 10)
    runs = read_runs([write_run(tmp_path / "a", metrics=[line(step, loss__total=step) for step in range(95)])])
    spy = Spy(monkeypatch)
    plot_runs(runs, tmp_path / "out.png")
    assert len(spy.figure.axes[0].lines[0].get_xdata()) == 10


def test_nothing_to_draw_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", metrics=b"")])
    with pytest.raises(ConfigError, match="nothing that could be drawn"):
        plot_runs(runs, tmp_path / "out.png")
    assert not list(tmp_path.glob("*.png"))


def test_where_a_run_has_other_terms_the_cross_entropy_is_drawn_too(tmp_path: Path) -> None:
    def run_with(name: str, **losses: float) -> Path:
        return write_run(tmp_path / name, metrics=[one | losses for one in lines()])

    plain = {"loss/classification": 1.0}
    control, student = run_with("a", **plain), run_with("b", **plain, **{"loss/gkd/primary": 2.0})
    assert "loss/classification" not in panels(read_runs([control]))
    assert panels(read_runs([control, student]))[:2] == ["loss/total", "loss/classification"]
