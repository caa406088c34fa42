"""Tables and plots of results. Plots need matplotlib, which is imported only when one is drawn.

A plot is written in the format that its file name ends in: `.png` for screens, `.pdf` (lines, no pixels) for papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
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
_FORMATS = (".png", ".pdf")
_DET_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
_WIDE_RANGE = 8  # costs that differ more are drawn on a logarithmic axis


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
    """Draw TAR over FAR (logarithmic) of each named curve into a file.

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


def plot_det(curves: Mapping[str, RocCurve], path: str | Path) -> None:
    """Draw the false reject rate over FAR of each named curve, both on normal-deviate scales, into a file.

    Scores that are normal with one variance for same and different pairs give a straight line.

    Source: Martin et al., The DET curve in assessment of detection task performance, Eurospeech 1997.
    """
    figure, axes = _new_axes("False accept rate (FAR)", "False reject rate", "Detection error trade-off")
    lowest_far = min((0.8 / curve.num_different for curve in curves.values()), default=0.01)
    lowest_miss = min((0.8 / curve.num_same for curve in curves.values()), default=0.01)
    highest_miss = 0.05
    for index, (name, curve) in enumerate(curves.items()):
        far, tar = _measurable_points(curve)
        highest_miss = max(highest_miss, 1 - float(tar[0]))
        misses = np.maximum(1 - tar, lowest_miss / 2)  # none at all lies infinitely low
        axes.step(_deviates(far), _deviates(misses), where="post", label=name, linewidth=1.8, **_style(index))
    _set_deviate_axis(axes.set_xlim, axes.set_xticks, lowest_far, 0.6)
    _set_deviate_axis(axes.set_ylim, axes.set_yticks, lowest_miss, min(0.995, highest_miss * 1.4))
    _save(figure, axes, path, legend_place="best")


def _deviates(rates: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    normal = NormalDist()
    return np.array([normal.inv_cdf(min(max(rate, 1e-12), 1 - 1e-12)) for rate in rates.tolist()])


def _set_deviate_axis(set_limits: Any, set_ticks: Any, low: float, high: float) -> None:
    ticks = [rate for rate in _DET_TICKS if low <= rate <= high]
    low_end, high_end = _deviates(np.array([low, high]))
    set_limits(low_end, high_end)
    set_ticks(_deviates(np.array(ticks)), labels=[f"{100 * rate:g} %" for rate in ticks])


def plot_pareto(
    points: Mapping[str, tuple[float, float]],
    path: str | Path,
    xlabel: str,
    ylabel: str = "Accuracy, %",
    is_more_better: bool = False,
) -> None:
    """Draw named (cost, score) points and the front of those that no other beats, into a file.

    Args:
        points: cost above 0 and score of each; a higher score is better.
        is_more_better: whether more of the cost is better, as of images per second.

    Raises:
        ConfigError: there is no point, or a cost is not above 0.
    """
    if not points or not all(cost > 0 and np.isfinite([cost, score]).all() for cost, score in points.values()):
        raise ConfigError(f"a Pareto plot needs finite points with costs above 0, got {dict(points)}")
    figure, axes = _new_axes(xlabel, ylabel, "")
    front = pareto_front(points, is_more_better)
    axes.plot(*zip(*(points[name] for name in front), strict=True), color="#808080", linestyle="--", linewidth=1.2)
    for index, (name, point) in enumerate(points.items()):
        axes.plot(*point, marker="o", markersize=7, color=_style(index)["color"], linestyle="")
        axes.annotate(name, point, xytext=(8, 3), textcoords="offset points", fontsize=9, parse_math=False)
    costs = [cost for cost, _ in points.values()]
    if max(costs) / min(costs) > _WIDE_RANGE:
        axes.set_xscale("log")
    axes.margins(x=0.18, y=0.12)
    _save(figure, axes, path, legend_place="best")


def pareto_front(points: Mapping[str, tuple[float, float]], is_more_better: bool = False) -> list[str]:
    """The names of the (cost, score) points that no other is as good as in both and better in one; the cheapest first.

    Args:
        is_more_better: whether more of the cost is better.
    """
    sign = -1.0 if is_more_better else 1.0
    ranked = sorted(points, key=lambda name: (sign * points[name][0], -points[name][1]))
    front: list[str] = []
    for name in ranked:
        if not front or points[name][1] > points[front[-1]][1] or points[name] == points[front[-1]]:
            front.append(name)
    return front


def plot_scores(
    same_scores: npt.NDArray[Any],
    different_scores: npt.NDArray[Any],
    path: str | Path,
    title: str = "Scores of the pairs",
    threshold: float | None = None,
) -> None:
    """Draw the histograms of the cosine scores of same (P,) and different (P,) pairs into a file.

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
    """Draw named (steps, values) curves, such as losses, over the training step into a file."""
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
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"{path}: a plot is written as {' or '.join(_FORMATS)}; name the file so")
    if axes.get_legend_handles_labels()[1]:
        for text in axes.legend(loc=legend_place, framealpha=0.9).get_texts():
            text.set_parse_math(False)  # a name is no formula
    path.parent.mkdir(parents=True, exist_ok=True)
    is_pdf = path.suffix.lower() == ".pdf"
    # Without a date in it, equal results give equal files.
    figure.savefig(path, format="pdf" if is_pdf else "png", metadata={"CreationDate": None} if is_pdf else None)
