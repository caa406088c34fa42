"""The written part of a report's page: tables, verdicts and pairs of pictures as HTML, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from gkd.evaluation.report_inputs import (
    BETTER,
    FALSE_ACCEPT,
    FALSE_REJECT,
    TAR_PREFIX,
    ErrorPair,
    ReportEntry,
    ReportModel,
    ReportSet,
)

NUM_COLORS = 8
_MISSING = '<td class="missing" aria-label="not known">&ndash;</td>'
_FIXED_FIGURES = (("accuracy", "Accuracy"), ("auc", "AUC"), ("eer", "EER"), ("d_prime", "d&prime;"))
_COSTS = (
    ("num_parameters", "Parameters", 1e6, "M"),
    ("gmacs", "GMACs", 1.0, ""),
    ("file_bytes", "File", 1e6, "MB"),
    ("images_per_second", "Images per second", 1.0, ""),
)
_NO_DIFFERENCE = "no difference seen"

Entries = Mapping[tuple[str, str], ReportEntry]


def color_classes(place: int) -> str:
    """The classes that give the model at `place` its colour, and once all are used another dash."""
    turn, color = divmod(place, NUM_COLORS)
    return f"m{color} d{turn % 4}"


def model_name(place: int, name: str) -> str:
    """A model's name with the mark of its colour."""
    mark = '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"><path d="M1 5H21"/></svg>'
    return f'<span class="model {color_classes(place)}">{mark}<span class="name">{escape(name)}</span></span>'


def summary_table(models: Sequence[ReportModel], sets: Sequence[ReportSet], entries: Entries) -> str:
    """Accuracy of every model (rows) on every set (columns)."""
    titles = "".join(f'<th scope="col"><a href="#set-{j}">{_name(one.name)}</a></th>' for j, one in enumerate(sets))
    rows = []
    for i, model in enumerate(models):
        cells = "".join(_figure_cell(entries.get((model.name, one.name)), "accuracy", entries) for one in sets)
        rows.append(f'<tr><th scope="row">{model_name(i, model.name)}</th>{cells}</tr>')
    return _table("Accuracy of each model on each set, %", f'<th scope="col">Model</th>{titles}', rows)


def set_table(models: Sequence[ReportModel], one: ReportSet, entries: Entries) -> str:
    """All figures of every model on one set."""
    found = [(i, entries[model.name, one.name]) for i, model in enumerate(models) if (model.name, one.name) in entries]
    columns = _columns([entry for _, entry in found])
    titles = "".join(f'<th scope="col">{title}</th>' for _, title in columns)
    rows = []
    for i, entry in found:
        cells = "".join(_figure_cell(entry, figure, entries) for figure, _ in columns)
        rows.append(f'<tr><th scope="row">{model_name(i, entry.model)}</th>{cells}</tr>')
    return _table(f"Figures on {one.name}", f'<th scope="col">Model</th>{titles}', rows)


def verdict_list(models: Sequence[ReportModel], one: ReportSet, entries: Entries) -> str:
    """What the paired tests of the accuracies say, each pair of models once; empty where no verdict was given."""
    lines, seen = [], set()
    for i, model in enumerate(models):
        entry = entries.get((model.name, one.name))
        for j, other in enumerate(models):
            verdict = (entry.verdict_vs or {}).get(other.name) if entry else None
            if verdict is None or frozenset((i, j)) in seen:
                continue
            seen.add(frozenset((i, j)))
            lines.append(f"<li>{_verdict_line(model_name(i, model.name), model_name(j, other.name), verdict)}</li>")
    if not lines:
        return ""
    return f'<h3>Beyond chance</h3><ul class="verdicts">{"".join(lines)}</ul>'


def cost_table(models: Sequence[ReportModel]) -> str:
    """Where each model is from and what it costs; what is not known of any model has no column."""
    columns = [column for column in _COSTS if any(getattr(model, column[0]) is not None for model in models)]
    has_source = any(model.source for model in models)
    titles = '<th scope="col">Model</th>' + '<th scope="col" class="text">Source</th>' * has_source
    titles += "".join(f'<th scope="col">{title}</th>' for _, title, _, _ in columns)
    rows = []
    for i, model in enumerate(models):
        source = f'<td class="text">{_name(model.source)}</td>' if model.source else _MISSING * has_source
        costs = "".join(_cost_cell(getattr(model, key), unit, unit_name) for key, _, unit, unit_name in columns)
        rows.append(f'<tr><th scope="row">{model_name(i, model.name)}</th>{source}{costs}</tr>')
    return _table("The models and what they cost", titles, rows)


def error_gallery(models: Sequence[ReportModel], one: ReportSet, error_pairs: Sequence[ErrorPair]) -> str:
    """The pictures of pairs that a model judges wrongly, the worst first."""
    groups = []
    for i, model in enumerate(models):
        for kind, title in ((FALSE_ACCEPT, "accepts two persons as one"), (FALSE_REJECT, "rejects one person")):
            pairs = [pair for pair in error_pairs if (pair.model, pair.set, pair.kind) == (model.name, one.name, kind)]
            pairs.sort(key=lambda pair: -pair.cosine if pair.kind == FALSE_ACCEPT else pair.cosine)
            if pairs:
                figures = "".join(_pictures(pair) for pair in pairs)
                groups.append(f'<h4>{model_name(i, model.name)} {title}</h4><div class="gallery">{figures}</div>')
    hint = "The number is the cosine. These pictures may show people: handle this file as personal data."
    return f'<h3>Hardest errors</h3><p class="hint">{hint}</p>{"".join(groups)}' if groups else ""


def is_clear_best(entry: ReportEntry, entries: Entries) -> bool:
    """Whether the accuracy is better, beyond chance, than that of every other model on the set."""
    rivals = [other.model for other in entries.values() if other.set == entry.set and other.model != entry.model]
    verdicts = entry.verdict_vs or {}
    return bool(rivals) and all(verdicts.get(rival) == BETTER for rival in rivals)


def figure_text(figure: str, value: float) -> str:
    """A figure as tables show it: rates in percent with two digits, AUC with five, d' with two."""
    if figure == "d_prime":
        return f"{value:.2f}"
    return f"{value:.5f}" if figure == "auc" else f"{100 * value:.2f}"


def _name(text: str) -> str:
    return f'<span class="name">{escape(text)}</span>'


def _columns(entries: Sequence[ReportEntry]) -> list[tuple[str, str]]:
    """The figures that could be measured for any entry, with the titles of their columns; the loosest FAR first."""
    present = {figure for entry in entries for figure, value in entry.figures.items() if value is not None}
    columns = [(figure, title) for figure, title in _FIXED_FIGURES if figure in present]
    tars = sorted((name for name in present if name.startswith(TAR_PREFIX)), key=_far_of, reverse=True)
    units = [(figure, title if figure in ("auc", "d_prime") else f"{title} %") for figure, title in columns]
    return [*units[:1], *((name, f"TAR % at FAR {escape(name.removeprefix(TAR_PREFIX))}") for name in tars), *units[1:]]


def _far_of(name: str) -> float:
    return float(name.removeprefix(TAR_PREFIX))


def _figure_cell(entry: ReportEntry | None, figure: str, entries: Entries) -> str:
    value = entry.figures.get(figure) if entry else None
    if entry is None or value is None:
        return _MISSING
    text = figure_text(figure, value)
    if figure == "accuracy" and is_clear_best(entry, entries):
        text = f"<strong>{text}</strong>"
    spread = entry.figures.get("accuracy_std") if figure == "accuracy" else None
    if spread is not None:
        text += f' <span class="spread">± {figure_text(figure, spread)}</span>'
    if figure in entry.intervals:
        low, high = (figure_text(figure, end) for end in entry.intervals[figure])
        text += f'<span class="interval">{low} &ndash; {high}</span>'
    return f"<td>{text}</td>"


def _verdict_line(name: str, other: str, verdict: str) -> str:
    if verdict == _NO_DIFFERENCE:
        return f"{name} and {other}: {verdict}"
    return f"{name} is {verdict} than {other}"


def _cost_cell(value: float | None, unit: float, unit_name: str) -> str:
    if value is None:
        return _MISSING
    amount = value / unit
    text = f"{amount:,.0f}" if amount >= 1000 else f"{amount:.3g}"
    return f"<td>{text}{' ' if unit_name else ''}{unit_name}</td>"


def _table(caption: str, titles: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f'<caption class="unseen">{escape(caption)}</caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pictures(pair: ErrorPair) -> str:
    images = "".join(
        f'<img alt="{side} picture of pair {pair.index}" src="data:image/jpeg;base64,{_base64(picture)}">'
        for side, picture in (("left", pair.left_jpeg), ("right", pair.right_jpeg))
    )
    caption = f"<b>{pair.cosine:.3f}</b> pair {pair.index}"
    return f"<figure>{images}<figcaption>{caption}</figcaption></figure>"


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")
