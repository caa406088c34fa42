"""Tables and plots."""

from __future__ import annotations

import builtins
from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import ConfigError
from gkd.evaluation import format_table, plot_curves, plot_roc, plot_scores, report, roc_curve
from gkd.evaluation.report import pareto_front, plot_det, plot_pareto


def _scores(num_pairs: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    is_same = np.arange(num_pairs) % 2 == 0
    return np.clip(generator.normal(is_same * 0.6, 0.15), -1, 1), is_same


def _assert_drawn(path: Path, ink: float = 0.02) -> None:
    """A readable picture with ink on it: not one colour, more than the frame of axes."""
    image = cv2.imread(str(path))
    assert image is not None
    assert image.shape[0] > 400
    assert image.shape[1] > 600
    assert (image != 255).any(axis=2).mean() > ink


def test_table_aligns_names_left_and_figures_right() -> None:
    rows = [{"set": "lfw", "accuracy": "99.83 ± 0.21"}, {"set": "cfp_fp", "accuracy": "98.1", "AUC": "0.99"}]
    assert format_table(rows) == (
        "set         accuracy   AUC\n"
        "------  ------------  ----\n"
        "lfw     99.83 ± 0.21     -\n"
        "cfp_fp          98.1  0.99\n"
    )


def test_table_of_nothing_is_empty() -> None:
    assert format_table([]) == ""


def test_roc_is_drawn(tmp_path: Path) -> None:
    scores, is_same = _scores()
    curves = {"a": roc_curve(scores, is_same), "b": roc_curve(np.round(scores, 1), is_same)}
    plot_roc(curves, tmp_path / "made" / "roc.png")
    _assert_drawn(tmp_path / "made" / "roc.png")


@pytest.mark.parametrize("scores", [[0.1, 0.2], [0.2, 0.1], [0.1, 0.1]])
def test_roc_of_two_pairs_and_of_ties_is_drawn(tmp_path: Path, scores: list[float]) -> None:
    plot_roc({"tiny": roc_curve(np.array(scores), np.array([True, False]))}, tmp_path / "roc.png")
    _assert_drawn(tmp_path / "roc.png")


def test_scores_are_drawn(tmp_path: Path) -> None:
    scores, is_same = _scores()
    plot_scores(scores[is_same], scores[~is_same], tmp_path / "scores.png", title="lfw", threshold=0.3)
    _assert_drawn(tmp_path / "scores.png")
    plot_scores(np.array([0.5]), np.array([0.5]), tmp_path / "equal.png")
    _assert_drawn(tmp_path / "equal.png")


def test_curves_are_drawn(tmp_path: Path) -> None:
    steps = list(range(0, 1000, 10))
    losses = [10 / (1 + step / 100) for step in steps]
    plot_curves({"loss/total": (steps, losses), "loss/gkd": ([0, 500], [3.0, 1.0])}, tmp_path / "c.png", "Loss")
    _assert_drawn(tmp_path / "c.png")


def test_missing_matplotlib_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        plot_curves({}, tmp_path / "c.png", "Loss")


def test_no_two_of_many_curves_look_alike() -> None:
    styles = [tuple(report._style(index).values()) for index in range(32)]
    assert len(set(styles)) == 32


def test_det_of_normal_scores_is_drawn_as_a_straight_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    is_same = np.arange(200_000) % 2 == 0
    curve = roc_curve(generator.normal(is_same * 2.0, 1.0), is_same)
    drawn = []
    save = report._save
    monkeypatch.setattr(report, "_save", lambda *given, **more: (drawn.append(given[1]), save(*given, **more)))
    plot_det({"normal": curve}, tmp_path / "det.png")
    _assert_drawn(tmp_path / "det.png")
    x, y = drawn[0].get_lines()[0].get_data()
    middle = (x > -2.5) & (x < 0)
    slope, offset = np.polyfit(x[middle], y[middle], 1)
    assert slope == pytest.approx(-1, abs=0.03)
    assert offset == pytest.approx(-2, abs=0.03)


@pytest.mark.parametrize("scores", [[0.1, 0.2], [0.2, 0.1], [0.1, 0.1]])
def test_det_of_two_pairs_and_of_none_is_drawn(tmp_path: Path, scores: list[float]) -> None:
    plot_det({"tiny": roc_curve(np.array(scores), np.array([True, False]))}, tmp_path / "det.png")
    plot_det({}, tmp_path / "none.png")
    _assert_drawn(tmp_path / "det.png", ink=0.01)
    _assert_drawn(tmp_path / "none.png", ink=0.01)


def test_front_against_comparing_all_points() -> None:
    generator = np.random.default_rng(0)
    for is_more_better in (False, True):
        for _ in range(50):
            found = generator.integers(1, 7, (9, 2)).astype(float)
            points = {str(place): (float(cost), float(score)) for place, (cost, score) in enumerate(found)}
            sign = -1 if is_more_better else 1
            front = {
                name
                for name, (cost, score) in points.items()
                if not any(
                    sign * c <= sign * cost and s >= score and (sign * c < sign * cost or s > score)
                    for c, s in points.values()
                )
            }
            got = pareto_front(points, is_more_better)
            assert set(got) == front
            assert [sign * points[name][0] for name in got] == sorted(sign * points[name][0] for name in got)


def test_pareto_is_drawn_and_names_are_no_formulas(tmp_path: Path) -> None:
    points = {"teacher $\\frac$": (65.2, 99.8), "student $": (2.06, 99.3), "other": (2.06, 98.0)}
    plot_pareto(points, tmp_path / "pareto.png", "Parameters, millions")
    plot_pareto({"one": (2.0, 99.0)}, tmp_path / "one.pdf", "GMACs", is_more_better=True)
    _assert_drawn(tmp_path / "pareto.png")
    scores, is_same = _scores()
    plot_roc({"$\\frac$": roc_curve(scores, is_same)}, tmp_path / "roc.png")
    _assert_drawn(tmp_path / "roc.png")


@pytest.mark.parametrize("points", [{}, {"a": (0.0, 1.0)}, {"a": (1.0, float("nan"))}, {"a": (float("inf"), 1.0)}])
def test_pareto_of_nothing_or_of_free_models_is_refused(tmp_path: Path, points: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ConfigError, match="finite points with costs above 0"):
        plot_pareto(points, tmp_path / "p.png", "GMACs")


def test_plots_for_papers_are_vectors_and_equal_each_time(tmp_path: Path) -> None:
    scores, is_same = _scores()
    for name in ("a.pdf", "b.pdf"):
        plot_det({"m": roc_curve(scores, is_same)}, tmp_path / name)
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Subtype /Image" not in content
    assert content == (tmp_path / "b.pdf").read_bytes()


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"roc.svg: a plot is written as .png or .pdf"):
        plot_roc({}, tmp_path / "roc.svg")
