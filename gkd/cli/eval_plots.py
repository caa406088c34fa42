"""The evaluation tool's plots: curves and scores of each set, accuracy against cost, robustness; as PNG and PDF."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gkd.cli.eval_run import ModelFigures, SetFigures
from gkd.cli.eval_statistics import Evaluation
from gkd.evaluation import RocCurve, plot_det, plot_pareto, plot_robustness, plot_roc, plot_scores, roc_curve

_SUFFIXES = (".png", ".pdf")  # for screens, for papers


def draw(evaluation: Evaluation, folder: Path) -> None:
    """Draw into `folder`, made where missing.

    `roc` and `det` hold all sets of one model; of several models there is one of each set with all of them, and
    accuracy against cost. Besides, the scores of each model on each set, and its robustness where that was measured.
    """
    models = [figures for figures in evaluation.models if figures.sets]
    is_alone = len(evaluation.models) == 1
    if is_alone:
        _draw_rates({name: _curve(of_set) for name, of_set in models[0].sets.items()}, folder, ())
    for name in evaluation.sets:
        found = [figures for figures in models if name in figures.sets]
        if found and not is_alone:
            _draw_rates({each.model.name: _curve(each.sets[name]) for each in found}, folder, (name,))
            _draw_costs(found, name, folder)
        for figures in found:
            _draw_scores(figures.sets[name], folder, name if is_alone else f"{figures.model.name}, {name}")
        degraded = {each.model.name: each.robustness[name].to_json() for each in found if name in each.robustness}
        for path in _files(folder, "robustness", name) if degraded else ():
            plot_robustness(degraded, path, title=name)


def _draw_rates(curves: dict[str, RocCurve], folder: Path, name: tuple[str, ...]) -> None:
    for path in _files(folder, "roc", *name):
        plot_roc(curves, path)
    for path in _files(folder, "det", *name):
        plot_det(curves, path)


def _draw_costs(models: Sequence[ModelFigures], name: str, folder: Path) -> None:
    """The cost that is the same on every machine, and the one that was measured on this one."""
    costs: dict[str, tuple[str, Callable[[ModelFigures], float | None]]] = {
        "gmacs": ("Multiplications and additions an image, 1e9", lambda each: each.model.gmacs),
        "speed": ("Images a second", lambda each: each.images_per_second),
    }
    for kind, (label, cost_of) in costs.items():
        known = [(each, cost) for each in models if (cost := cost_of(each))]
        points = {each.model.name: (cost, 100 * each.sets[name].result.accuracy) for each, cost in known}
        for path in _files(folder, "pareto", kind, name) if len(points) > 1 else ():
            plot_pareto(points, path, label, f"Accuracy on {name}, %", is_more_better=kind == "speed")


def _draw_scores(of_set: SetFigures, folder: Path, title: str) -> None:
    result = of_set.result
    same, different = result.cosines[result.is_same], result.cosines[~result.is_same]
    text = f"{title}: {100 * result.accuracy:.2f} % of {result.num_pairs} pairs"
    for path in _files(folder, "scores", *title.split(", ")):
        plot_scores(same, different, path, title=text, threshold=1 - result.threshold / 2)


def _curve(of_set: SetFigures) -> RocCurve:
    return roc_curve(-of_set.result.distances, of_set.result.is_same)


def _files(folder: Path, *names: str) -> Iterator[Path]:
    stem = "_".join(re.sub(r"[^\w.-]", "_", name) for name in names)
    return (folder / f"{stem}{suffix}" for suffix in _SUFFIXES)
