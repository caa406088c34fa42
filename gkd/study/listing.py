"""What a study would do: its inputs, which must be there, and the list of its runs for `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gkd.core.errors import ConfigError
from gkd.evaluation import format_table
from gkd.study.plan import PlannedRun, StudyPlan, describe_changes
from gkd.study.score import SetKey, StudySets, file_sha256
from gkd.study.state import changed_settings, choose, is_finished, is_scored
from gkd.study_schema import CONTROL


def read_sets(plan: StudyPlan) -> StudySets:
    """Read the sets' content once; refuse what is missing and a test set that settings are chosen on.

    Raises:
        ConfigError: as above, and training data or teachers that are not there; all are listed.
    """
    study = plan.study
    missing = [f"{key}: no such file or folder: {path}" for key, path in _inputs(plan) if not path.exists()]
    if missing:
        raise ConfigError("the study cannot start:\n  " + "\n  ".join(missing))
    tuning = SetKey(study.tuning.pairs, file_sha256(study.tuning.pairs), study.tuning.flip)
    tests = tuple(SetKey(path, file_sha256(path), study.test.flip) for path in study.test.sets)
    same = [test for test in tests if test.sha256 == tuning.sha256]
    if same:
        raise ConfigError(
            f"tuning.pairs: {tuning.path} has the content of the test set {same[0].path}; settings chosen on a test "
            "set make its figures worthless: choose them on held-out identities of the training data"
        )
    return StudySets(tuning, tests)


def _inputs(plan: StudyPlan) -> dict[tuple[str, Path], None]:
    """Every path that the runs read and no run of the study makes, once each, with the key that names it."""
    found = {("tuning.pairs", plan.study.tuning.pairs): None}
    found |= {("test.sets", path): None for path in plan.study.test.sets}
    for method in plan.methods:
        for trial in range(len(plan.trials(method))):
            config = plan.final_runs(method, trial if method == CONTROL else 0, trial)[0].config
            found[f"data.train.path ({method})", Path(config.data.train.arguments()["path"])] = None
            for key in ("run", "weights", "check_pairs"):
                path = getattr(config.teacher, key, None)
                if isinstance(path, Path):
                    found[f"teacher.{key} ({method})", path] = None
    return found


def format_plan(plan: StudyPlan, sets: StudySets) -> str:
    """Every run of the study with its folder, its settings and whether it is done."""
    rows: list[dict[str, str]] = []
    control = choose(plan.tuning_runs(CONTROL), sets.tuning)
    for method in plan.methods:
        rows += [_row(run, (sets.tuning,)) for run in plan.tuning_runs(method, control or 0)]
    for method in plan.methods:
        trial = None if control is None else choose(plan.tuning_runs(method, control), sets.tuning)
        runs = plan.final_runs(method, control or 0, trial or 0)
        rows += [_row(run, sets.tests, is_open=trial is None) for run in runs]
    num_left = sum(row["state"] != "done" for row in rows)
    note = "" if control is not None else "the control's choice is open: trials of methods are shown with its first\n"
    return f"{format_table(rows)}\n{note}{len(rows)} runs, {num_left} to do; folders are in {plan.folder}\n"


def _row(run: PlannedRun, keys: Sequence[SetKey], is_open: bool = False) -> dict[str, str]:
    settings = "as tuning will choose" if is_open else describe_changes(run.changes)
    return {"run": run.name, "state": _state(run, keys), "seed": str(run.seed), "settings": settings}


def _state(run: PlannedRun, keys: Sequence[SetKey]) -> str:
    if is_finished(run):
        return "done" if is_scored(run, keys) else "to be scored"
    if not (run.folder / "config.yaml").exists():
        return "missing"
    return "of other settings" if changed_settings(run) else "begun"
