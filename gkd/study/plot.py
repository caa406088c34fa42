"""A picture of a study: each seed's accuracy, the mean, and the interval of the gap to the control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.core.errors import ConfigError
from gkd.core.files import atomic_write
from gkd.evaluation.compare import Gap

BLUE, ORANGE = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Bar:
    """What is drawn of a method: accuracies are fractions, one a seed; `gap` is that to the first bar, the control."""

    method: str
    accuracies: Sequence[float]
    mean: float | None
    gap: Gap | None


def plot_accuracies(bars: Sequence[Bar], path: Path, title: str) -> None:
    """Draw one row a method into a PNG file: a dot a seed, a bar at the mean, the interval around it.

    The interval is that of the gap, laid at the control's mean: where it reaches the dashed line, none is seen.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib, which is not installed; run `pip install matplotlib`") from error
    figure = Figure(figsize=(7.0, 1.4 + 0.5 * len(bars)), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    baseline = bars[0].mean
    for row, bar in enumerate(bars):
        _draw(axes, row, bar, baseline)
    if baseline is not None:
        axes.axvline(100 * baseline, color="black", linestyle="--", linewidth=1)
    _finish(axes, [bar.method for bar in bars], title)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=3, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(axes: Any, row: int, bar: Bar, baseline: float | None) -> None:
    values = [100 * accuracy for accuracy in bar.accuracies]
    axes.scatter(values, [row] * len(values), color=BLUE, alpha=0.6, s=28, zorder=3, label="a seed")
    if bar.mean is not None:
        axes.plot([100 * bar.mean], [row], "|", color="black", markersize=16, zorder=4, label="mean")
    if bar.gap is not None and baseline is not None:
        ends = [100 * (baseline + bar.gap.low), 100 * (baseline + bar.gap.high)]
        axes.plot(ends, [row, row], color=ORANGE, linewidth=3, alpha=0.7, label="95 % interval of the gap")


def _finish(axes: Any, names: Sequence[str], title: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("Verification accuracy (%)")
    axes.set_title(title)
    axes.set_axisbelow(True)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
