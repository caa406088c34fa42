"""One line a run: what it is, how far it came, its best and last figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from gkd.core.errors import ConfigError
from gkd.runs.describe import describe
from gkd.runs.figures import (
    ACCURACY,
    LOSS,
    SPEED,
    Figures,
    better_end,
    figures,
    format_figure,
    main_metrics,
    metric_names,
)
from gkd.runs.run import Run
from gkd.runs.text_table import format_terminal

_TEXTS = ("name", "state", "student", "head", "distillation", "data")
TITLES = (*_TEXTS, "started", "commit", "steps", "accuracy", "last", "loss", "images/s")


def run_cells(run: Run) -> list[str]:
    """The texts of a run under `TITLES`."""
    words, accuracy, loss, speed = describe(run.config), *(figures(run, name) for name in (ACCURACY, LOSS, SPEED))
    return [
        run.name,
        str(run.state),
        *(words[key] for key in _TEXTS[2:]),
        run.starts[0].short_time or "-",
        run.starts[-1].short_commit or "-",
        run.state.progress,
        format_figure(ACCURACY, accuracy.best if accuracy else None),
        format_figure(ACCURACY, accuracy.last if accuracy else None),
        format_figure(LOSS, loss.last if loss else None),
        format_figure(SPEED, speed.median if speed else None),
    ]


def format_list(runs: Sequence[Run]) -> str:
    """The table for a terminal, and below it what was damaged."""
    table = format_terminal(TITLES, [run_cells(run) for run in runs], len(_TEXTS) + 2)
    notes = [f"{run.name}: {note}\n" for run in runs for note in run.notes]
    legend = "accuracy: the best mean over the evaluation sets; last, loss: as last logged; images/s: the median\n"
    return table + "\n" + legend + "".join(notes)


def run_record(run: Run) -> dict[str, Any]:
    """A run as plain values for JSON; a figure that is not finite is null."""
    first, last = run.starts[0], run.starts[-1]
    return {
        "name": run.name,
        "folder": str(run.folder).encode("utf-8", "backslashreplace").decode("utf-8"),
        "state": run.state.kind,
        "step": run.state.step,
        "total_steps": run.state.total_steps,
        **describe(run.config),
        "started": first.time or None,
        "num_starts": len(run.starts),
        "git_commit": last.git_commit or None,
        "figures": {name: _plain(found) for name in (ACCURACY, *main_metrics([run])) if (found := figures(run, name))},
        "notes": list(run.notes),
    }


def _plain(found: Figures) -> Mapping[str, float | int | None]:
    values = {
        "best": found.best,
        "best_step": found.best_step,
        "last": found.last,
        "last_step": found.last_step,
        "median": found.median,
    }
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}


def sort_runs(runs: Sequence[Run], key: str, *, is_reversed: bool = False) -> list[Run]:
    """`runs` by `key`: a text column, `started`, `steps`, or a metric, the better ones first.

    Of an evaluation the best value counts, of a loss the last, of others the median. Runs that lack it come last.

    Raises:
        ConfigError: no run has a metric of that name.
    """
    if key in _TEXTS or key == "started":
        return sorted(runs, key=lambda run: _text_key(run, key), reverse=is_reversed)
    if key == "steps":
        return sorted(runs, key=lambda run: -run.state.step, reverse=is_reversed)
    name = {"loss": LOSS, "images/s": SPEED}.get(key, key)
    require_metric(name, runs, "--sort", also=(*_TEXTS, "started", "steps", "loss", "images/s", ACCURACY))
    has, lacks = [], []
    for run in runs:
        value = _sort_value(run, name)
        if value is None:
            lacks.append(run)
        else:
            has.append((value, run))
    has.sort(key=lambda pair: pair[0], reverse=is_reversed)
    return [run for _, run in has] + lacks


def require_metric(name: str, runs: Sequence[Run], option: str, also: Sequence[str] = ()) -> None:
    """Refuse a metric that no run has.

    Raises:
        ConfigError: with the names that are nearest.
    """
    known = [*also, *metric_names(runs)]
    if name in known:
        return
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known[:20]) or 'none'}"
    raise ConfigError(f"{option} {name}: none of the runs has such a metric; {hint}")


def _text_key(run: Run, key: str) -> tuple[bool, str]:
    text = run.starts[0].time if key == "started" else run_cells(run)[TITLES.index(key)]
    return (not text, text)


def _sort_value(run: Run, name: str) -> float | None:
    found = figures(run, name)
    if found is None:
        return None
    end = better_end(name)
    value = found.last if end == "low" and name.startswith("loss/") else found.best
    if end is None or name == SPEED:
        value = found.median
    if value is None or math.isnan(value):
        return None
    return value if end == "low" else -value
