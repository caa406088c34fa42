"""What must hold before a study trains anything: its teachers can teach, no set leaks, no folder holds other runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from gkd import build
from gkd.build_teacher import check_teacher_files, require_same_size
from gkd.core.config import to_plain
from gkd.core.errors import ConfigError, GkdError
from gkd.data import PairSet
from gkd.schema import TrainRun
from gkd.study.plan import PlannedRun, StudyPlan
from gkd.study.score import StudySets
from gkd.study.state import changed_settings, choose
from gkd.study_schema import CONTROL


def require_ready(plan: StudyPlan, sets: StudySets) -> None:
    """Refuse a study that would fail, or lie, after hours.

    Raises:
        ConfigError: all that was found.
    """
    problems = [*_leaks(sets), *_other_runs(plan, sets), *_teacher_problems(plan)]
    if problems:
        raise ConfigError("the study cannot start:\n  " + "\n  ".join(problems))


def _leaks(sets: StudySets) -> Iterator[str]:
    tuning = _image_digests(sets.tuning.path)
    for test in sets.tests:
        shared = len(tuning & _image_digests(test.path))
        if shared:
            yield (
                f"tuning.pairs: {shared} of the images of {sets.tuning.path} are also in the test set {test.path}; "
                "choose settings on other people"
            )


def _image_digests(path: Path) -> set[bytes]:
    return {hashlib.sha256(image).digest() for image in PairSet.load(path).images}


def _other_runs(plan: StudyPlan, sets: StudySets) -> Iterator[str]:
    """Folders of runs with other settings, as far as the choices made already tell which runs come."""
    control = choose(plan.tuning_runs(CONTROL), sets.tuning)
    runs: list[PlannedRun] = list(plan.tuning_runs(CONTROL))
    if control is not None:
        runs += plan.final_runs(CONTROL, control, control)
        for method in plan.study.methods:
            trials = plan.tuning_runs(method, control)
            trial = choose(trials, sets.tuning)
            runs += [*trials, *(plan.final_runs(method, control, trial) if trial is not None else [])]
    for run in runs:
        changed = changed_settings(run)
        if changed:
            listed = "; ".join(f"{key}: {there!r} there, {now!r} now" for key, (there, now) in sorted(changed.items()))
            yield f"{run.folder} holds a run of other settings ({listed}); name another study.folder, or remove it"


def _teacher_problems(plan: StudyPlan) -> Iterator[str]:
    """What is wrong with each teacher, told once."""
    seen: set[str] = set()
    for method in plan.study.methods:
        for run in plan.tuning_runs(method, 0) or plan.final_runs(method, 0, 0)[:1]:
            key = json.dumps([to_plain(run.config.teacher), to_plain(run.config.backbone)], default=str)
            if run.config.teacher is None or key in seen:
                continue
            seen.add(key)
            try:
                _try_teacher(run.config)
            except GkdError as error:
                yield f"teacher ({method}): {error}"


def _try_teacher(config: TrainRun) -> None:
    assert config.teacher is not None
    network = check_teacher_files(config, build.build_dataset(config))
    with torch.device("meta"):
        require_same_size(build.build_backbone(config), network.backbone)
    PairSet.load(config.teacher.check_pairs)
