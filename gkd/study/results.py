"""What a study found: each method on each test set, its gap to the control, the minutes it took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gkd.evaluation.compare import Gap, paired_gap
from gkd.study.plan import PlannedRun, StudyPlan, describe_changes
from gkd.study.score import Score, SetKey, StudySets, current_score, read_verdicts
from gkd.study_schema import CONTROL
from gkd.train.metrics import read_metrics

CONFIDENCE = 0.95


@dataclass(frozen=True)
class StudyOutcome:
    """A study that went to its end: what was chosen, and which runs failed and why."""

    plan: StudyPlan
    sets: StudySets
    choices: Mapping[str, int]
    failures: Mapping[str, str]

    def final_runs(self, method: str) -> list[PlannedRun]:
        """The final runs of a method, none where no settings could be chosen."""
        if method not in self.choices:
            return []
        return self.plan.final_runs(method, self.choices[CONTROL], self.choices[method])

    def scored_runs(self, method: str, key: SetKey) -> list[tuple[PlannedRun, Score]]:
        """The final runs of a method that have a score on a set."""
        runs = [run for run in self.final_runs(method) if run.name not in self.failures]
        return [(run, score) for run in runs if (score := current_score(run.folder, key)) is not None]


@dataclass(frozen=True)
class MethodResult:
    """A method on one test set. Accuracies and rates are fractions; `gap` is None for the control itself."""

    method: str
    num_trials: int
    accuracies: Mapping[int, float]
    tars: Sequence[float | None]
    gap: Gap | None
    minutes: Sequence[float]
    settings: str
    seeds: Sequence[int]

    @property
    def mean(self) -> float | None:
        """Mean accuracy over the seeds."""
        return statistics.mean(self.accuracies.values()) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, None of a single one."""
        return statistics.stdev(self.accuracies.values()) if len(self.accuracies) > 1 else None


def method_results(outcome: StudyOutcome, key: SetKey) -> list[MethodResult]:
    """Every method on one test set, the control first."""
    control = outcome.scored_runs(CONTROL, key)
    results = []
    for method in outcome.plan.methods:
        scored = outcome.scored_runs(method, key)
        runs = outcome.final_runs(method)
        results.append(
            MethodResult(
                method=method,
                num_trials=len(outcome.plan.trials(method)),
                accuracies={run.seed: score.accuracy for run, score in scored},
                tars=[score.figures["tar_at_far"]["1e-3"] for _, score in scored],
                gap=None if method == CONTROL else _gap(scored, control, key),
                minutes=[minutes for run, _ in scored if (minutes := training_minutes(run.folder)) is not None],
                settings=describe_changes(runs[0].changes) if runs else "none could be chosen",
                seeds=outcome.plan.study.study.seeds,
            )
        )
    return results


def _gap(
    scored: Sequence[tuple[PlannedRun, Score]], control: Sequence[tuple[PlannedRun, Score]], key: SetKey
) -> Gap | None:
    """The gap over the seeds that both have, so that a failed run does not change what is compared."""
    ours = {run.seed: run for run, _ in scored}
    theirs = {run.seed: run for run, _ in control}
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    right, baseline = (
        np.stack([read_verdicts(runs[seed].folder, key.path) for seed in seeds]) for runs in (ours, theirs)
    )
    return paired_gap(right, baseline, confidence=CONFIDENCE)


def training_minutes(run_folder: Path) -> float | None:
    """Minutes of training steps, without evaluation, saving and pauses between stop and resume; None if not known."""
    path = run_folder / "metrics.jsonl"
    try:
        steps, seconds = read_metrics(path, "time/step_seconds")
    except (OSError, ValueError):  # a run that never began, or whose last line a kill cut short
        return None
    done = [0, *steps[:-1]]
    return sum((step - before) * each for step, before, each in zip(steps, done, seconds, strict=True)) / 60
