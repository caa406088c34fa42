"""The report of a study: one table of methods, every run below it, plots, and the same as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gkd.core.files import atomic_write
from gkd.evaluation import format_table, plot_curves
from gkd.evaluation.compare import Gap
from gkd.study.notes import study_notes
from gkd.study.plan import PlannedRun, describe_changes
from gkd.study.plot import Bar, plot_accuracies
from gkd.study.results import MethodResult, StudyOutcome, method_results, training_minutes
from gkd.study.score import SetKey, current_score
from gkd.study.state import is_finished
from gkd.study_schema import CONTROL
from gkd.train.metrics import read_metrics

LOSS = "loss/classification"


def write_report(outcome: StudyOutcome) -> str:
    """Write `report.md`, `report.json` and the plots into the study's folder; returns what a terminal should show."""
    folder = outcome.plan.folder
    results = {key.path.stem: method_results(outcome, key) for key in outcome.sets.tests}
    plots = _plot(outcome, results)
    runs = _all_runs(outcome)
    tables = {name: [_method_row(result) for result in of_set] for name, of_set in results.items()}
    notes = study_notes(outcome)
    _write(folder / "report.md", _markdown(outcome, tables, runs, notes, plots))
    _write(folder / "report.json", json.dumps(_plain(outcome, results, runs, notes), indent=2) + "\n")
    texts = [f"{_title(outcome, name)}\n\n{format_table(rows)}" for name, rows in tables.items()]
    paths = [folder / "report.md", folder / "report.json", *plots]
    failed = [f"failed  {name}: {error}" for name, error in outcome.failures.items()]
    return "\n" + "\n".join([*texts, *notes, *failed, "", *(str(path) for path in paths)]) + "\n"


def _method_row(result: MethodResult) -> dict[str, str]:
    row = {"method": result.method, "settings tried": str(result.num_trials)}
    for seed in result.seeds:
        row[f"seed {seed}"] = _percent(result.accuracies.get(seed))
    deviation = "" if result.deviation is None else f" ± {100 * result.deviation:.2f}"
    row["mean ± std"] = _percent(result.mean) + deviation
    row["gap to control [95 %]"] = _gap_text(result.gap)
    row["verdict"] = "-" if result.gap is None else result.gap.verdict
    tars = [tar for tar in result.tars if tar is not None]
    row["TAR@FAR=1e-3"] = _percent(statistics.mean(tars) if tars else None)
    row["min/run"] = f"{statistics.mean(result.minutes):.1f}" if result.minutes else "-"
    if len(result.accuracies) < len(result.seeds):
        row["verdict"] += f" ({len(result.seeds) - len(result.accuracies)} run(s) missing)"
    return row


def _gap_text(gap: Gap | None) -> str:
    return "-" if gap is None else f"{100 * gap.gap:+.2f} [{100 * gap.low:+.2f}, {100 * gap.high:+.2f}]"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}"


def _title(outcome: StudyOutcome, name: str) -> str:
    seeds = outcome.plan.study.study.seeds
    return f"{name}: verification accuracy in %, {len(seeds)} seed(s) a method, gaps in percentage points"


def _all_runs(outcome: StudyOutcome) -> list[dict[str, Any]]:
    """Every run: trials with their accuracy on the tuning pairs, final runs with theirs, failed ones with the cause."""
    control = outcome.choices.get(CONTROL, 0)
    entries = []
    for method in outcome.plan.methods:
        for run in outcome.plan.tuning_runs(method, control):
            is_chosen = outcome.choices.get(method) == run.trial
            entries.append(_run_entry(outcome, run, [outcome.sets.tuning]) | {"is_chosen": is_chosen})
    for method in outcome.plan.methods:
        entries += [_run_entry(outcome, run, outcome.sets.tests) for run in outcome.final_runs(method)]
    return entries


def _run_entry(outcome: StudyOutcome, run: PlannedRun, keys: Sequence[SetKey]) -> dict[str, Any]:
    scores = {key.path.stem: current_score(run.folder, key) for key in keys}
    return {
        "run": run.name,
        "method": run.method,
        "seed": run.seed,
        "settings": dict(run.changes),
        "error": outcome.failures.get(run.name),
        "minutes": training_minutes(run.folder),
        "scores": {
            name: None if score is None else {**score.figures, "num_scorings": score.num_scorings}
            for name, score in scores.items()
        },
    }


def _run_row(entry: Mapping[str, Any]) -> dict[str, str]:
    accuracies = [
        f"{name} {_percent(None if figures is None else figures['accuracy'])}"
        for name, figures in entry["scores"].items()
    ]
    is_scored = all(figures is not None for figures in entry["scores"].values())
    state = "chosen" if entry.get("is_chosen") else ("" if is_scored else "not run")
    minutes = entry["minutes"]
    return {
        "run": entry["run"],
        "accuracy %": ", ".join(accuracies),
        "min": "-" if minutes is None else f"{minutes:.1f}",
        "settings": describe_changes(entry["settings"]),
        "note": f"failed: {entry['error']}" if entry["error"] else state,
    }


def _plot(outcome: StudyOutcome, results: Mapping[str, Sequence[MethodResult]]) -> list[Path]:
    folder = outcome.plan.folder
    paths = []
    for name, of_set in results.items():
        if any(result.accuracies for result in of_set):
            paths.append(folder / f"accuracy_{name}.png")
            bars = [Bar(each.method, list(each.accuracies.values()), each.mean, each.gap) for each in of_set]
            plot_accuracies(bars, paths[-1], f"Accuracy on {name}")
    curves = {}
    for method in outcome.plan.methods:
        runs = outcome.final_runs(method)[:1]
        if runs and is_finished(runs[0]):
            curves[method] = read_metrics(runs[0].folder / "metrics.jsonl", LOSS)
    if any(steps for steps, _ in curves.values()):
        paths.append(folder / "loss.png")
        title = f"Training, seed {outcome.plan.study.study.seeds[0]}"
        plot_curves(curves, paths[-1], "classification loss", title)
    return paths


def _markdown(
    outcome: StudyOutcome,
    tables: Mapping[str, Sequence[Mapping[str, str]]],
    runs: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    plots: Sequence[Path],
) -> str:
    parts = [f"# Study {outcome.plan.folder.name}"]
    for name, rows in tables.items():
        parts += [f"## {_title(outcome, name)}", _markdown_table(rows)]
    parts += [f"![{path.stem}]({path.name})" for path in plots]
    parts += ["## How", "\n".join(f"- {note}" for note in notes)]
    parts += ["## All runs", _markdown_table([_run_row(entry) for entry in runs])]
    others = {name: error for name, error in outcome.failures.items() if name not in {run["run"] for run in runs}}
    parts += [f"- {name} failed: {_cell(error)}" for name, error in others.items()]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = [titles, ["---"] * len(titles), *([row.get(title, "-") for title in titles] for row in rows)]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _plain(
    outcome: StudyOutcome,
    results: Mapping[str, Sequence[MethodResult]],
    runs: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        "sets": {name: [_plain_result(result) for result in of_set] for name, of_set in results.items()},
        "runs": list(runs),
        "failures": dict(outcome.failures),
        "notes": list(notes),
    }


def _plain_result(result: MethodResult) -> dict[str, Any]:
    gap = result.gap
    return {
        "method": result.method,
        "num_trials": result.num_trials,
        "accuracies": {str(seed): accuracy for seed, accuracy in result.accuracies.items()},
        "mean": result.mean,
        "std": result.deviation,
        "gap": None if gap is None else {"gap": gap.gap, "low": gap.low, "high": gap.high, "verdict": gap.verdict},
        "tar_at_far_1e-3": list(result.tars),
        "minutes": list(result.minutes),
        "settings": result.settings,
    }


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
