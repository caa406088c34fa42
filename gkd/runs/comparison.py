"""Runs side by side: the settings that differ, and the figures with their differences to the first run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gkd.runs.config_leaves import Difference, differences
from gkd.runs.figures import SPEED, Figures, better_end, figures, format_figure, main_metrics
from gkd.runs.listing import require_metric
from gkd.runs.run import Run
from gkd.runs.text_table import escape_markdown, format_markdown, format_terminal

Format = Callable[[Sequence[str], Sequence[Sequence[str]], int], str]


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; the rows are (name, one text a run)."""

    runs: Sequence[Run]
    settings: Sequence[Difference]
    figure_rows: Sequence[Sequence[str]]


def compare(runs: Sequence[Run], metrics: Sequence[str] = ()) -> Comparison:
    """Compare `runs` by `metrics`, or where none are named by those that matter most.

    Raises:
        ConfigError: no run has one of the metrics.
    """
    for name in metrics:
        require_metric(name, runs, "--metric")
    rows = [row for name in metrics or main_metrics(runs) for row in _figure_rows(runs, name)]
    return Comparison(runs, differences([run.config for run in runs]), rows)


def _figure_rows(runs: Sequence[Run], name: str) -> list[list[str]]:
    found = [figures(run, name) for run in runs]
    kinds: list[tuple[str, Callable[[Figures], float | None]]] = [("last", lambda one: one.last)]
    if name == SPEED:
        kinds = [("median", lambda one: one.median)]
    elif better_end(name) is not None:
        kinds.insert(0, ("best", lambda one: one.best))
    rows = []
    for kind, read in kinds:
        values = [None if one is None else read(one) for one in found]
        rows.append([name, kind, *(_cell(name, value, values[0], place) for place, value in enumerate(values))])
    return rows


def _cell(name: str, value: float | None, first: float | None, place: int) -> str:
    text = format_figure(name, value)
    if place == 0 or value is None or first is None:
        return text
    return f"{text} ({format_figure(name, value - first, is_difference=True)})"


def format_comparison(found: Comparison) -> str:
    """The comparison for a terminal."""
    return _format(found, format_terminal, "", lambda text: text)


def format_comparison_markdown(found: Comparison, picture: str | None = None) -> str:
    """The comparison as Markdown; `picture` is the path of the curves, as seen from the file."""
    text = _format(found, format_markdown, "## ", escape_markdown)
    return text if picture is None else f"{text}\n## Curves\n\n![Curves of the runs](<{picture}>)\n"


def _format(found: Comparison, table: Format, heading: str, show: Callable[[str], str]) -> str:
    names = [run.name for run in found.runs]
    blocks = [f"{heading}Runs\n\n" + table(*_run_rows(found.runs), 4)]
    blocks.append(f"{heading}Settings that differ\n\n" + _settings(found, names, table))
    if found.figure_rows:
        title = f"{heading}Figures, and in brackets the difference to {show(names[0])}\n\n"
        blocks.append(title + table(["metric", "", *names], found.figure_rows, 2))
    notes = [show(f"{run.name}: {note}") + "\n" for run in found.runs for note in run.notes]
    if notes:
        blocks.append(f"{heading}Notes\n\n" + "\n".join(notes))
    return "\n".join(blocks)


def _run_rows(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [run.name, str(run.state), run.starts[0].short_time or "-", run.starts[-1].short_commit or "-"] for run in runs
    ]
    return ["run", "state", "started", "commit", "steps"], [
        [*row, run.state.progress] for row, run in zip(rows, runs, strict=True)
    ]


def _settings(found: Comparison, names: Sequence[str], table: Format) -> str:
    if not found.settings:
        return "None: the configs are equal but for run.folder.\n"
    rows = [[one.key, *one.values] for one in found.settings]
    return table(["setting", *names], rows, 1 + len(names))
