"""Curves of several runs as one PNG picture, a panel a metric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gkd.core.errors import ConfigError
from gkd.core.files import atomic_write
from gkd.runs.figures import ACCURACY, CROSS_ENTROPY, LOSS, LR, SPEED, curve_of, metric_names
from gkd.runs.run import Run
from gkd.runs.series import thinned

MAX_PANELS = 12
MAX_POINTS = 2000

# Eight hues that colour-blind readers can tell apart (Okabe and Ito, 2008), the light yellow last.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
_DASHES = ("-", "--", ":", "-.")


def panels(runs: Sequence[Run], metrics: Sequence[str] = ()) -> list[str]:
    """The metrics to draw: those named, or else the losses, the accuracies, the learning rate and the speed.

    Of the losses the total one, and the cross entropy where some run has other terms beside it.
    """
    if metrics:
        return list(metrics)[:MAX_PANELS]
    known = metric_names(runs)
    accuracies = [name for name in known if name.startswith("eval/") and name.endswith("/accuracy")]
    has_terms = any(name.startswith("loss/") and name not in (LOSS, CROSS_ENTROPY) for name in known)
    wanted = [LOSS, *[CROSS_ENTROPY] * has_terms, ACCURACY, *accuracies, LR, SPEED]
    return [name for name in wanted if name in known][:MAX_PANELS]


def plot_runs(runs: Sequence[Run], path: Path, metrics: Sequence[str] = ()) -> None:
    """Draw the curves over the training step into a PNG file.

    Raises:
        ConfigError: matplotlib is missing, or no run has anything to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("curves need matplotlib, which is not installed; run `pip install matplotlib`") from error
    names = panels(runs, metrics)
    if not names:
        raise ConfigError("the runs have logged nothing that could be drawn")
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    legend_rows = math.ceil(len(runs) / 3)
    figure = Figure(figsize=(6.0 * columns, 3.4 * rows + 0.25 * legend_rows), dpi=120, layout="constrained")
    for place, name in enumerate(names):
        _draw_panel(figure.add_subplot(rows, columns, place + 1), runs, name)
    _add_legend(figure, runs)
    with atomic_write(path) as temporary, warnings.catch_warnings():
        # A run's name may hold signs that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format="png")


def _draw_panel(axes: Any, runs: Sequence[Run], name: str) -> None:
    for place, run in enumerate(runs):
        curve = curve_of(run.metrics, name)
        if curve is not None:
            steps, values = thinned(curve, MAX_POINTS)
            marker = "o" if len(steps) < 30 else ""
            axes.plot(steps, values, linewidth=1.5, marker=marker, markersize=3, **_style(place))
    axes.set_title(name, fontsize=10, parse_math=False)
    axes.set_xlabel("Step")
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _style(place: int) -> dict[str, Any]:
    """A colour, and once all have been used another dash."""
    turn, color = divmod(place, len(_COLORS))
    return {"color": _COLORS[color], "linestyle": _DASHES[turn % len(_DASHES)]}


def _add_legend(figure: Any, runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=2, **_style(place)) for place in range(len(runs))]
    # A name that begins with an underscore would be left out, and one with $ read as a formula: so it is set later.
    legend = figure.legend(
        handles, ["run"] * len(runs), loc="outside lower center", ncols=min(3, len(runs)), frameon=False, fontsize=9
    )
    for text, run in zip(legend.get_texts(), runs, strict=True):
        text.set_parse_math(False)
        text.set_text(run.name if len(run.name) <= 48 else run.name[:47] + "…")
