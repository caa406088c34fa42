"""Tables and plots of results. Plots need matplotlib, which is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError
from gkd.evaluation.tar_far import RocCurve

_GAP = "  "
_MISSING = "-"
# Eight hues that colour-blind readers can tell apart (Okabe and Ito, 2008), the light yellow last.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
_DASHES = ("-", "--", ":", "-.")


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Plain-text table with aligned columns: the first to the left, the others to the right.

    Args:
        rows: one mapping of column title to text each. Columns appear in the order in which they are first met; a
            row that lacks one shows `-`. No rows give an empty text.
    """
    titles = list(dict.fromkeys(title for row in rows for title in row))
    if not titles:
        return ""
    lines = [titles, *([row.get(title, _MISSING) for title in titles] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(_format_line(line, widths) + "\n" for line in lines)


def _format_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return _GAP.join([first, *others]).rstrip()


def plot_roc(curves: Mapping[str, RocCurve], path: str | Path) -> None:
    """Draw TAR over FAR (logarithmic) of each named curve into a PNG file.

    A curve starts at its own smallest measurable FAR, one false accept.
    """
    figure, axes = _new_axes("False accept rate (FAR)", "True accept rate (TAR)", "Receiver operating characteristic")
    smallest_far = 1e-1
    for index, (name, curve) in enumerate(curves.items()):
        far, tar = _measurable_points(curve)
        smallest_far = min(smallest_far, float(far[0]))
        axes.step(far, tar, where="post", label=name, linewidth=1.8, **_style(index))
    axes.set_xscale("log")
    axes.set_xlim(smallest_far, 1.0)
    axes.set_ylim(top=1.005)
    axes.grid(which="minor", alpha=0.12)
    _save(figure, axes, path, legend_place="lower right")


def _measurable_points(curve: RocCurve) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The best TAR at each FAR from one false accept on; a tie that jumps past it is drawn as it is held until then."""
    one_accept = 1 / curve.num_different
    far = np.concatenate(([one_accept], curve.far[curve.far > one_accept]))
    index = np.searchsorted(curve.far, far, side="right") - 1
    return far, curve.tar[index]


def plot_scores(
    same_scores: npt.NDArray[Any],
    different_scores: npt.NDArray[Any],
    path: str | Path,
    title: str = "Scores of the pairs",
    threshold: float | None = None,
) -> None:
    """Draw the histograms of the cosine scores of same (P,) and different (P,) pairs into a PNG file.

    Args:
        threshold: a cosine to mark with a line.
    """
    figure, axes = _new_axes("Cosine similarity", "Share of the pairs of its kind", title)
    both = np.concatenate((same_scores, different_scores))
    edges = np.linspace(float(both.min()) - 0.01, float(both.max()) + 0.01, 61)
    kinds = (("different", different_scores, _COLORS[1]), ("same", same_scores, _COLORS[0]))
    for name, scores, color in kinds:
        weights = np.full(len(scores), 1 / max(len(scores), 1))
        label = f"{name} ({len(scores)})"
        axes.hist(scores, edges, weights=weights, color=color, alpha=0.45, label=label)
        axes.hist(scores, edges, weights=weights, color=color, histtype="step", linewidth=1.4)
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.2, label=f"threshold {threshold:.3f}")
    _save(figure, axes, path, legend_place="best")


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: str | Path, ylabel: str, title: str = ""
) -> None:
    """Draw named (steps, values) curves, such as losses, over the training step into a PNG file."""
    figure, axes = _new_axes("Step", ylabel, title)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        marker = "o" if len(steps) < 30 else ""
        axes.plot(steps, values, label=name, linewidth=1.6, marker=marker, markersize=3.5, **_style(index))
    _save(figure, axes, path, legend_place="best")


def _style(index: int) -> dict[str, str]:
    """A color, and once all have been used another dash."""
    turn, place = divmod(index, len(_COLORS))
    return {"color": _COLORS[place], "linestyle": _DASHES[turn % len(_DASHES)]}


def _new_axes(xlabel: str, ylabel: str, title: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib, which is not installed; run `pip install matplotlib`") from error
    figure = Figure(figsize=(7.0, 4.6), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, axes: Any, path: str | Path, legend_place: str) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc=legend_place, framealpha=0.9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
