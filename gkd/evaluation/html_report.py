"""A report of an evaluation as one HTML page that needs nothing else: no server, no network, no library.

The page asks for nothing from outside, and its content policy forbids it to; only its own script may run.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from gkd.core.files import atomic_write
from gkd.core.offline_page import content_policy, safe_json
from gkd.evaluation.report_data import embedded_data
from gkd.evaluation.report_inputs import ErrorPair, ReportEntry, ReportModel, ReportSet, check_report
from gkd.evaluation.report_tables import (
    Entries,
    cost_table,
    error_gallery,
    is_clear_best,
    set_table,
    summary_table,
    verdict_list,
)

__all__ = ["ErrorPair", "ReportEntry", "ReportModel", "ReportSet", "report_page", "write_report"]

_SCRIPTS = ("charts.js", "entries.js", "curves.js", "thresholds.js", "page.js")


def write_report(
    path: str | Path,
    title: str,
    models: Sequence[ReportModel],
    sets: Sequence[ReportSet],
    entries: Sequence[ReportEntry],
    error_pairs: Sequence[ErrorPair] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write the report as one HTML file, whole or not at all; equal inputs give equal bytes.

    Args:
        path: the file, replaced where it exists.
        title: the heading.
        models: in the order of the tables; the order gives the colours.
        sets: in the order of the page.
        entries: at most one for each model and set; what has none shows as missing.
        error_pairs: pairs to show with their pictures. They may be faces of people, which makes the file personal
            data, so nothing adds them by itself.
        notes: texts for the end of the page: conditions, seeds, dates.

    Raises:
        DataError: names, figures, distances or pictures do not fit; the message names the first that does not.
    """
    page = report_page(title, models, sets, entries, error_pairs, notes)
    with atomic_write(path) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def report_page(
    title: str,
    models: Sequence[ReportModel],
    sets: Sequence[ReportSet],
    entries: Sequence[ReportEntry],
    error_pairs: Sequence[ErrorPair] = (),
    notes: Sequence[str] = (),
) -> str:
    """The text of the page that `write_report` writes."""
    check_report(title, models, sets, entries, error_pairs, notes)
    by_place = {(entry.model, entry.set): entry for entry in entries}
    style = _template("page.css")
    script = "".join(_template(name) for name in _SCRIPTS)
    return Template(_template("page.html")).substitute(
        title=escape(title),
        counts=f"{_counted(len(models), 'model')} on {_counted(len(sets), 'set')} of pairs",
        policy=content_policy(style, script),
        style=style,
        script=script,
        links=_links(models, sets, notes),
        summary=summary_table(models, sets, by_place) + _summary_note(by_place),
        sets="".join(_set_section(place, one, models, by_place, error_pairs) for place, one in enumerate(sets)),
        costs=_cost_section(models),
        notes=_notes_section(notes),
        data=safe_json(embedded_data(models, sets, entries)),
    )


def _template(name: str) -> str:
    return (files("gkd.evaluation") / "html" / name).read_text(encoding="utf-8")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _links(models: Sequence[ReportModel], sets: Sequence[ReportSet], notes: Sequence[str]) -> str:
    links = [("summary", "Summary"), *((f"set-{place}", one.name) for place, one in enumerate(sets))]
    links += [("costs", "Costs")] * _has_costs(models) + [("notes", "Notes")] * bool(notes)
    return "".join(f'<a href="#{anchor}"><span class="name">{escape(text)}</span></a>' for anchor, text in links)


def _summary_note(entries: Entries) -> str:
    parts = ["Accuracy in percent: mean ± standard deviation over the protocol's folds."]
    if any(entry.intervals.get("accuracy") for entry in entries.values()):
        parts.append("Below it the confidence interval.")
    if any(is_clear_best(entry, entries) for entry in entries.values()):
        parts.append("Bold: better than every other model on the set beyond chance.")
    elif any(entry.verdict_vs for entry in entries.values()):
        parts.append("No model is better than all others beyond chance, so none is bold.")
    return f'<p class="hint">{" ".join(parts)}</p>'


def _set_section(
    place: int, one: ReportSet, models: Sequence[ReportModel], entries: Entries, error_pairs: Sequence[ErrorPair]
) -> str:
    head = f'<section id="set-{place}" class="set" data-set="{place}"><h2 class="name">{escape(one.name)}</h2>'
    found = [entries[key] for model in models if (key := (model.name, one.name)) in entries]
    if not found:
        return f'{head}<p class="hint">No model was evaluated on this set.</p></section>'
    num_different = one.num_pairs - one.num_same
    counts = f"{one.num_pairs:,} pairs: {one.num_same:,} of one person, {num_different:,} of two"
    return (
        f'{head}<p class="hint">{counts}. The smallest FAR it can tell is 1 in {num_different:,}.</p>'
        f"{set_table(models, one, entries)}{verdict_list(models, one, entries)}"
        f"{_chart_pair(place)}"
        '<h3>Scores and thresholds</h3><p class="hint">A pair is accepted where its cosine is above the threshold. '
        "Accuracy here counts all pairs at this one threshold; the tables' is the protocol's, judged fold by fold. "
        "The marks on the curves above follow the sliders.</p>"
        f'<div class="cards" data-cards="{place}"></div>'
        f"{_bin_charts(place, found)}{_degraded_charts(found)}{error_gallery(models, one, error_pairs)}</section>"
    )


def _chart_pair(place: int) -> str:
    roc = _figure("roc", place, "ROC: share of same pairs accepted")
    return f'<div class="pair">{roc}{_figure("det", place, "DET: share of same pairs rejected")}</div>'


def _figure(kind: str, place: int, title: str) -> str:
    """An empty figure that the page's script draws in."""
    holder = f'<div data-chart="{kind}" data-set="{place}"></div>'
    return f"<figure><figcaption>{title}</figcaption>{holder}</figure>"


def _bin_charts(place: int, entries: Sequence[ReportEntry]) -> str:
    wanted = [
        ("quality", "Accuracy by quality, equal shares of the pairs", any(e.pair_quality is not None for e in entries)),
        ("yaw", "Accuracy by yaw, degrees", any(e.pair_yaw is not None for e in entries)),
    ]
    figures = "".join(_figure(kind, place, title) for kind, title, is_known in wanted if is_known)
    return f'<h3>Where the errors are</h3><div class="pair">{figures}</div>' if figures else ""


def _degraded_charts(entries: Sequence[ReportEntry]) -> str:
    names = dict.fromkeys(name for entry in entries for name in entry.degraded)
    figures = "".join(
        f'<figure><figcaption class="name">{escape(name.replace("_", " "))}</figcaption>'
        f'<div data-degradation="{escape(name)}"></div></figure>'
        for name in names
    )
    hint = "Accuracy on images degraded more and more, with its standard deviation over the folds."
    return f'<h3>Robustness</h3><p class="hint">{hint}</p><div class="pair">{figures}</div>' if figures else ""


def _has_costs(models: Sequence[ReportModel]) -> bool:
    return any(
        value is not None
        for model in models
        for value in (
            model.source or None,
            model.num_parameters,
            model.gmacs,
            model.file_bytes,
            model.images_per_second,
        )
    )


def _cost_section(models: Sequence[ReportModel]) -> str:
    if not _has_costs(models):
        return ""
    return (
        f'<section id="costs"><h2>Costs</h2>{cost_table(models)}'
        '<figure class="wide" data-chart="pareto"></figure></section>'
    )


def _notes_section(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f'<li class="name">{escape(note)}</li>' for note in notes)
    return f'<section id="notes"><h2>Notes</h2><ul>{items}</ul></section>'
