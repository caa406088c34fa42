"""The evaluation tool's tables, for a terminal and in Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from gkd.cli.eval_run import ModelFigures, SetFigures
from gkd.cli.eval_statistics import CONFIDENCE, Comparison, Evaluation
from gkd.evaluation import Interval, VerificationIntervals, far_name, format_table
from gkd.inference.robustness import RobustnessResult

_MISSING = "-"
_INTERVAL = f"{100 * CONFIDENCE:.0f} % interval"

Row = dict[str, str]


def terminal_text(evaluation: Evaluation) -> str:
    """All tables as plain text, with notes; empty where nothing was found."""
    is_several = len(evaluation.models) > 1
    parts = [
        format_table([_set_row(figures, name, is_several) for name, figures in _by_set(evaluation)]),
        format_table([_comparison_row(each, len(evaluation.models) > 2) for each in evaluation.comparisons]),
        format_table(_ijb_rows(evaluation, is_several)),
        *(_robustness_text(figures, is_several) for figures in evaluation.models),
    ]
    text = "\n".join(part for part in parts if part)
    return text + "".join(f"{note}\n" for note in _notes(evaluation, is_several))


def _by_set(evaluation: Evaluation) -> list[tuple[str, ModelFigures]]:
    """Every model that has figures of a set, the models of one set beside each other."""
    return [(name, figures) for name in evaluation.sets for figures in evaluation.models if name in figures.sets]


def _set_row(figures: ModelFigures, name: str, is_several: bool) -> Row:
    of_set = figures.sets[name]
    result, speed = of_set.result, of_set.images_per_second
    row = {
        "set": name,
        **({"model": figures.model.name} if is_several else {}),
        "pairs": str(result.num_pairs),
        "accuracy %": f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}",
    }
    if of_set.intervals is not None:
        row[_INTERVAL] = _interval(of_set.intervals.accuracy)
    if of_set.identity_intervals is not None:
        row["over persons"] = _interval(of_set.identity_intervals.accuracy)
    return row | {
        "TAR@FAR=1e-3 %": _percent(result.tar_at_far[1e-3]),
        "TAR@FAR=1e-4 %": _percent(result.tar_at_far[1e-4]),
        "AUC": f"{result.auc:.5f}",
        "EER %": _percent(result.eer),
        "same cosine": f"{result.mean_same_cosine:.3f}",
        "d'": _MISSING if result.d_prime is None else f"{result.d_prime:.2f}",
        "threshold": f"{result.threshold:.2f}",
        "seconds": f"{of_set.seconds:.1f}",
        "images/s": _MISSING if speed is None else f"{speed:.0f}",
    }


def _comparison_row(comparison: Comparison, is_named: bool) -> Row:
    gap, found = comparison.found.accuracy_gap, comparison.found
    return {
        "set": comparison.set_name,
        "model": comparison.model,
        **({"against": comparison.baseline} if is_named else {f"against {comparison.baseline}": found.verdict}),
        **({"verdict": found.verdict} if is_named else {}),
        "accuracy gap": f"{100 * gap.gap:+.2f}",
        f"{100 * found.confidence:.0f} % interval of the gap": f"{100 * gap.low:+.2f} to {100 * gap.high:+.2f}",
        "p over pairs": f"{found.mcnemar_p:.2g}",
    }


def _ijb_rows(evaluation: Evaluation, is_several: bool) -> list[Row]:
    return [
        {
            "protocol": name,
            **({"model": figures.model.name} if is_several else {}),
            "templates": str(result.num_templates),
            "pairs": str(result.num_pairs),
            **{f"TAR@FAR={far_name(far)} %": _percent(tar) for far, tar in result.tar_at_far.items()},
        }
        for figures in evaluation.models
        for name, result in figures.ijb.items()
    ]


def _robustness_text(figures: ModelFigures, is_several: bool) -> str:
    parts = []
    for name, result in figures.robustness.items():
        who = f"{figures.model.name} on {name}" if is_several else name
        parts.append(f"{who}, {_degraded(result)}:\n{result.table()}")
    return "\n".join(parts)


def _degraded(result: RobustnessResult) -> str:
    return f"degraded ({result.clean.num_pairs} pairs)"


def _interval(interval: Interval) -> str:
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"


def _percent(fraction: float | None) -> str:
    return _MISSING if fraction is None else f"{100 * fraction:.2f}"


def _notes(evaluation: Evaluation, is_several: bool) -> list[str]:
    """What there is to say beside the figures, each once."""
    notes = []
    for name, figures in _by_set(evaluation):
        of_set = figures.sets[name]
        where = f"{name}, {figures.model.name}" if is_several else name
        notes += [f"{name}: {note}" for note in of_set.result.notes]
        notes += [f"{where}: {note}" for note in of_set.notes]
        notes += [f"{where}: {note}" for note in _interval_notes(of_set)]
    return list(dict.fromkeys(notes))


def _interval_notes(of_set: SetFigures) -> list[str]:
    """The figures with few errors in one line; other notes as they are."""
    found = [each.notes for each in (of_set.intervals, of_set.identity_intervals) if each is not None]
    notes = list(dict.fromkeys(note for each in found for note in each))
    few = list(dict.fromkeys(note.partition(" rests on ")[0] for note in notes if " rests on " in note))
    shortened = [f"few errors, so the intervals of these are likely too narrow: {', '.join(few)}"] if few else []
    return shortened + [note for note in notes if " rests on " not in note]


def markdown(evaluation: Evaluation, arguments: argparse.Namespace) -> str:
    """All tables in Markdown, with what was run and how."""
    sections = {
        "Models": [_model_row(figures) for figures in evaluation.models],
        "Verification": [_markdown_row(figures, name) for name, figures in _by_set(evaluation)],
        "Comparison": [_comparison_row(each, True) for each in evaluation.comparisons],
        "IJB": _ijb_rows(evaluation, True),
    }
    parts = [f"## {title}\n\n{_markdown_table(rows)}" for title, rows in sections.items() if rows]
    for figures in evaluation.models:
        for name, result in figures.robustness.items():
            lines = "".join(f"    {line}\n" for line in result.table().splitlines())
            title = f"{_escaped(figures.model.name)} on {_escaped(name)}, {_degraded(result)}"
            parts.append(f"## {title}\n\n{lines}")
    notes = [f"- {_escaped(note)}\n" for note in [settings_note(arguments), *_notes(evaluation, True)]]
    failed = {
        f"- refused: {_escaped(message)}\n": None
        for figures in evaluation.models
        for message in figures.failed.values()
    }
    return "\n".join([*parts, "## Notes\n\n" + "".join([*notes, *failed])])


def settings_note(arguments: argparse.Namespace) -> str:
    """How the figures were made, in one line."""
    fusion = "the image alone" if arguments.fusion == "none" else f"image and mirror image, fused by {arguments.fusion}"
    if arguments.resamples == 0:
        return fusion
    return (
        f"{fusion}; intervals: {100 * CONFIDENCE:.0f} %, percentile bootstrap, {arguments.resamples} resamples of the "
        "pairs, and of the persons where these are known"
    )


def _model_row(figures: ModelFigures) -> Row:
    model = figures.model
    speed = figures.images_per_second
    return {
        "model": model.name,
        "source": model.source,
        "network": model.family,
        "input": f"{model.input_spec}, {model.size[0]}x{model.size[1]}",
        "parameters": _MISSING if model.num_parameters is None else f"{model.num_parameters / 1e6:.2f} M",
        "GMACs": _MISSING if model.gmacs is None else f"{model.gmacs:.3f}",
        "file": f"{model.file_bytes / 1e6:.1f} MB",
        "images/s": _MISSING if speed is None else f"{speed:.0f}",
    }


def _markdown_row(figures: ModelFigures, name: str) -> Row:
    of_set = figures.sets[name]
    result = of_set.result
    known = of_set.identity_intervals or of_set.intervals

    def with_interval(text: str, interval: Interval | None) -> str:
        return text if interval is None else f"{text} ({_interval(interval)})"

    row = {
        "set": name,
        "model": figures.model.name,
        "pairs": str(result.num_pairs),
        "accuracy %": f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}",
    }
    for label, intervals in (("over pairs", of_set.intervals), ("over persons", of_set.identity_intervals)):
        if intervals is not None:
            row[f"{_INTERVAL} {label}"] = _interval(intervals.accuracy)
    for far in (1e-2, 1e-3, 1e-4):
        row[f"TAR@FAR={far_name(far)} %"] = with_interval(_percent(result.tar_at_far[far]), _tar_interval(known, far))
    return row | {
        "AUC": f"{result.auc:.5f}",
        "EER %": with_interval(_percent(result.eer), None if known is None else known.eer),
        "d'": _MISSING if result.d_prime is None else f"{result.d_prime:.2f}",
    }


def _tar_interval(intervals: VerificationIntervals | None, far: float) -> Interval | None:
    return None if intervals is None else intervals.tar_at_far[far]


def _markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = [titles, *([row.get(title, _MISSING) for title in titles] for row in rows)]
    text = [f"| {' | '.join(_escaped(cell) for cell in line)} |\n" for line in lines]
    text.insert(1, "|" + "---|" * len(titles) + "\n")
    return "".join(text)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for char in "\\`*_<|[":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())
