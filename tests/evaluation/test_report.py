"""Tables and plots."""

from __future__ import annotations

import builtins
from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import ConfigError
from gkd.evaluation import format_table, plot_curves, plot_roc, plot_scores, report, roc_curve


def _scores(num_pairs: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    is_same = np.arange(num_pairs) % 2 == 0
    return np.clip(generator.normal(is_same * 0.6, 0.15), -1, 1), is_same


def _assert_drawn(path: Path) -> None:
    """A readable picture with ink on it: not one colour, more than the frame of axes."""
    image = cv2.imread(str(path))
    assert image is not None
    assert image.shape[0] > 400
    assert image.shape[1] > 600
    assert (image != 255).any(axis=2).mean() > 0.02


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
