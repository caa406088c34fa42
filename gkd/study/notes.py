"""How a study came to its figures, as sentences: what was chosen on what, how often test sets were seen, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gkd import build
from gkd.study.plan import describe_changes
from gkd.study.results import StudyOutcome
from gkd.study_schema import CONTROL

VERSIONS = ("python", "torch", "git_commit")


def study_notes(outcome: StudyOutcome) -> list[str]:
    """The sentences, in the order of the report."""
    study = outcome.plan.study
    notes = [
        f"Settings were chosen on {study.tuning.pairs} with seed {study.tuning.seed}; every method inherits the "
        f"control's: {describe_changes(_control_settings(outcome))}.",
        _scorings_note(outcome),
        "Intervals: 95 %, paired bootstrap over the pairs; they do not cover which identities or which seeds were "
        "drawn. `better` and `worse` are said only where the interval excludes zero.",
        f"Minutes are of training steps, {study.study.jobs} run(s) at a time on one machine.",
    ]
    return notes + _provenance(outcome)


def _control_settings(outcome: StudyOutcome) -> Mapping[str, Any]:
    runs = outcome.final_runs(CONTROL)
    return runs[0].changes if runs else {}


def _scorings_note(outcome: StudyOutcome) -> str:
    counts = []
    for key in outcome.sets.tests:
        scored = [(run, score) for method in outcome.plan.methods for run, score in outcome.scored_runs(method, key)]
        total = sum(score.num_scorings for _, score in scored)
        again = [run.name for run, score in scored if score.num_scorings > 1]
        more = f" (more than once: {', '.join(again)})" if again else ""
        counts.append(f"{key.path} was scored {total} time(s) for {len(scored)} final run(s){more}")
    return "Test sets: " + "; ".join(counts) + "."


def _provenance(outcome: StudyOutcome) -> list[str]:
    runs = [run for method in outcome.plan.methods for run in outcome.final_runs(method)]
    seen: dict[str, set[str]] = {name: set() for name in VERSIONS}
    for run in runs:
        for start in _starts(run.folder):
            for name in VERSIONS:
                seen[name].add(str(start.get(name)))
    notes = ["Versions: " + ", ".join(f"{name} {' and '.join(sorted(values))}" for name, values in seen.items()) + "."]
    if runs:
        config = runs[0].config
        fingerprint = build.build_dataset(config).fingerprint
        notes.append(f"Training data: {config.data.train.arguments()['path']}, fingerprint {fingerprint[:16]}.")
    for key in (outcome.sets.tuning, *outcome.sets.tests):
        notes.append(f"Pairs: {key.path}, sha256 {key.sha256[:16]}, {'with' if key.flip else 'without'} mirror images.")
    lines = dict.fromkeys(line for run in runs if run.is_distilled for line in _teacher_lines(run.folder))
    return notes + [f"Teacher: {line}." for line in lines]


def _starts(run_folder: Path) -> list[dict[str, Any]]:
    path = run_folder / "run.json"
    starts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return starts


def _teacher_lines(run_folder: Path) -> list[str]:
    """What runs logged of the proof that their teacher gave."""
    log = run_folder / "train.log"
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split("teacher: ", 1)[1] for line in lines if " teacher: verification accuracy" in line]
