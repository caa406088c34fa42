"""Accuracy under growing degradation, drawn as one panel a degradation and one line a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd.core.errors import ConfigError
from gkd.evaluation.report import _style

_FORMATS = (".png", ".pdf")
_LABELS = {
    "accuracy": "Accuracy (%)",
    "tar_at_far_1e-3": "TAR at FAR 1e-3 (%)",
    "auc": "Area under the ROC (%)",
}
_MAX_COLUMNS = 5
_PANEL_INCHES = (2.5, 2.1)
_CLEAN = "none"


def plot_robustness(
    results: Mapping[str, Mapping[str, Any]], path: str | Path, figure: str = "accuracy", title: str = ""
) -> None:
    """Draw small multiples into a PNG or PDF file.

    The levels stand at equal distances, from none on; those of several models are joined, in the order of the first
    model that has them. Panels share the vertical axis. Bars are the standard deviation over the folds (accuracy only).

    Args:
        results: by model, what `RobustnessResult.to_json()` of `gkd.inference.robustness` gives.
        path: ends in .png or .pdf.
        figure: accuracy, tar_at_far_1e-3 or auc; a level where it could not be measured is left out.
        title: above all panels.

    Raises:
        ConfigError: nothing to draw, an unknown figure or file ending, or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(f"a plot's file must end in {' or '.join(_FORMATS)}, got {path}")
    if figure not in _LABELS:
        raise ConfigError(f"figure must be one of {', '.join(_LABELS)}, got `{figure}`")
    units = {name: curve["unit"] for result in results.values() for name, curve in result["curves"].items()}
    if not units:
        raise ConfigError("no degradation to draw; measure at least one model under at least one")
    drawn, panels = _new_panels(len(units))
    for axes, (name, unit) in zip(panels, units.items(), strict=False):
        _draw_panel(axes, name, unit, results, figure)
    _label(drawn, panels, len(units), figure, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, format=path.suffix.lower()[1:])


def _new_panels(num_panels: int) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib, which is not installed; run `pip install matplotlib`") from error
    num_rows = math.ceil(num_panels / _MAX_COLUMNS)
    num_columns = math.ceil(num_panels / num_rows)
    width, height = _PANEL_INCHES
    size = (max(width * num_columns, 4.0) + 0.4, height * num_rows + 0.9)
    figure = Figure(figsize=size, dpi=140, layout="constrained")
    return figure, list(figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).flat)


def _draw_panel(axes: Any, name: str, unit: str, results: Mapping[str, Mapping[str, Any]], figure: str) -> None:
    curves = {model: result["curves"][name]["points"] for model, result in results.items() if name in result["curves"]}
    levels = list(dict.fromkeys(point["level"] for points in curves.values() for point in points))
    for index, model in enumerate(results):
        measured = [point for point in curves.get(model, ()) if point[figure] is not None]
        places = [levels.index(point["level"]) for point in measured]
        heights = [100 * point[figure] for point in measured]
        bars = None
        if figure == "accuracy":  # no further than to 100 %
            below = [100 * point["accuracy_std"] for point in measured]
            bars = [below, [min(bar, 100 - top) for bar, top in zip(below, heights, strict=True)]]
        look = {"marker": "o", "markersize": 3.0, "linewidth": 1.4, "elinewidth": 0.7, "capsize": 1.5}
        axes.errorbar(places, heights, yerr=bars, label=model, **look, **_style(index))
    axes.set_title(name.replace("_", " "), fontsize=9)
    axes.set_xlabel(unit, fontsize=7)
    axes.set_xticks(range(len(levels)), [_CLEAN if level is None else f"{level:g}" for level in levels])
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _label(drawn: Any, panels: Sequence[Any], num_used: int, figure: str, title: str) -> None:
    for axes in panels[num_used:]:
        axes.set_visible(False)
    drawn.supylabel(_LABELS[figure], fontsize=9)
    if title:
        drawn.suptitle(title, fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), fontsize=8, frameon=False)
