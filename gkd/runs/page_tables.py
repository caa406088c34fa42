"""The parts of the page that need no script: the table of runs, the best figures, the details of each run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gkd.runs.describe import describe
from gkd.runs.figures import ACCURACY, LOSS, SPEED, better_end, figures, format_figure, metric_names
from gkd.runs.run import Run

NUM_BEST = 3

_COLUMNS = (
    ("Run", "text"),
    ("State", "text"),
    ("Student, head", "text"),
    ("Distillation", "text"),
    ("Data", "text"),
    ("Started, commit", "text"),
    ("Best accuracy", "number"),
    ("Last", "number"),
    ("Loss", "number"),
    ("Images/s", "number"),
)


def color_class(place: int) -> str:
    """The class that gives the run at `place` its colour and, once all were used, another dash."""
    return f"m{place % 8} d{place // 8 % 4}"


def mark(place: int, name: str) -> str:
    """A run's line and name."""
    return (
        f'<span class="model {color_class(place)}"><svg class="swatch" viewBox="0 0 22 10" aria-hidden="true">'
        f'<path d="M1 5H21"/></svg><span class="name">{escape(name)}</span></span>'
    )


def runs_table(runs: Sequence[Run]) -> str:
    """One row a run; each cell bears the value by which it is sorted."""
    heads = "".join(
        f'<th scope="col" class="{kind}"><button type="button" class="sort">{escape(title)}</button></th>'
        for title, kind in _COLUMNS
    )
    rows = "".join(_row(place, run) for place, run in enumerate(runs))
    return f'<table id="run-table"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _row(place: int, run: Run) -> str:
    words = describe(run.config)
    started, commit = run.starts[0].short_time or "-", run.starts[-1].short_commit
    accuracy, loss, speed = (figures(run, name) for name in (ACCURACY, LOSS, SPEED))
    warning = f' <span class="flag" title="{escape("; ".join(run.notes))}">⚠</span>' if run.notes else ""
    return (
        f'<tr data-run="{place}"><th scope="row" data-sort="{escape(run.name)}"><label class="switch">'
        f'<input type="checkbox" checked> {mark(place, run.name)}</label>{warning}</th>'
        + _text_cell(
            f'<span class="state {_slug(run)}">{escape(str(run.state))}</span>', run.state.progress, run.state.kind
        )
        + _text_cell(escape(words["student"]), words["head"], f"{words['student']} {words['head']}")
        + _text_cell(escape(words["distillation"]), "", words["distillation"])
        + _text_cell(escape(words["data"]), "", words["data"])
        + _text_cell(escape(started), commit, run.starts[0].time)
        + _number_cell(ACCURACY, accuracy.best if accuracy else None)
        + _number_cell(ACCURACY, accuracy.last if accuracy else None)
        + _number_cell(LOSS, loss.last if loss else None)
        + _number_cell(SPEED, speed.median if speed else None)
        + "</tr>"
    )


def _slug(run: Run) -> str:
    return run.state.kind.rstrip("?").replace(" ", "-")


def _text_cell(markup: str, second: str, key: str) -> str:
    small = f'<small class="name">{escape(second)}</small>' if second else ""
    return f'<td class="text" data-sort="{escape(key)}"><span class="name">{markup}</span>{small}</td>'


def _number_cell(name: str, value: float | None) -> str:
    if value is None:
        return '<td class="missing" data-sort="">&ndash;</td>'
    return f'<td data-sort="{value!r}">{escape(format_figure(name, value))}</td>'


def best_table(runs: Sequence[Run]) -> str:
    """The best runs of every figure that runs can be ranked by; losses are not, since their terms differ."""
    rows = []
    for name in metric_names(runs):
        is_ranked = better_end(name) is not None and not name.startswith("loss/")
        found = _ranking(runs, name) if is_ranked else []
        if found:
            cells = "".join(_best_cell(name, value, place, runs[place]) for value, place in found[:NUM_BEST])
            cells += '<td class="text missing">&ndash;</td>' * (NUM_BEST - len(found[:NUM_BEST]))
            rows.append(f'<tr><th scope="row" class="name">{escape(name)}</th>{cells}</tr>')
    if not rows:
        return '<p class="hint">No run has logged an evaluation.</p>'
    heads = "".join(f'<th scope="col" class="text">{title}</th>' for title in ("Best", "Second", "Third")[:NUM_BEST])
    head = f'<thead><tr><th scope="col">Figure</th>{heads}</tr></thead>'
    return f'<div class="scroll"><table id="best-table">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _ranking(runs: Sequence[Run], name: str) -> list[tuple[float, int]]:
    """(value, place) of the runs that have the figure, the best first; of speed the median counts."""
    found = []
    for place, run in enumerate(runs):
        of_run = figures(run, name)
        value = None if of_run is None else of_run.median if name == SPEED else of_run.best
        if value is not None:
            found.append((value, place))
    return sorted(found, key=lambda one: (one[0] if better_end(name) == "low" else -one[0], one[1]))


def _best_cell(name: str, value: float, place: int, run: Run) -> str:
    of_run = figures(run, name)
    step = "" if name == SPEED or of_run is None or of_run.best_step is None else f" at step {of_run.best_step:,}"
    text = f"<b>{escape(format_figure(name, value))}</b><small>{step}</small>"
    return f'<td class="text">{text}<br>{mark(place, run.name)}</td>'


def detail_blocks(runs: Sequence[Run]) -> str:
    """Folder, command and environment of each run, folded up."""
    return "".join(_details(place, run) for place, run in enumerate(runs))


def _details(place: int, run: Run) -> str:
    entries = [("Folder", str(run.folder).encode("utf-8", "backslashreplace").decode("utf-8"))]
    entries += [("Started", f"{start.time}: {start.command}") for start in run.starts[-5:] if start.command]
    last = run.starts[-1]
    entries += [("Commit", last.git_commit)] if last.git_commit else []
    entries += [(key, text) for key, text in (last.details or {}).items()]
    entries += [("Note", note) for note in run.notes]
    items = "".join(f'<dt>{escape(key)}</dt><dd class="name">{escape(text)}</dd>' for key, text in entries)
    return f'<details><summary>{mark(place, run.name)}</summary><dl class="details">{items}</dl></details>'


def note_list(runs: Sequence[Run], notes: Sequence[str]) -> str:
    """What was damaged or left out, as a section; nothing where all is well."""
    texts = [*notes, *(f"{run.name}: {note}" for run in runs for note in run.notes)]
    if not texts:
        return ""
    items = "".join(f'<li class="name">{escape(text)}</li>' for text in texts)
    return f'<section id="notes"><h2>Notes</h2><ul>{items}</ul></section>'
