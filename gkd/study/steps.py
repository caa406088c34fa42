"""The steps of a study in their order, each run a command of its own: tune, choose, train, score."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gkd.build_teacher import kept_folder
from gkd.core.config import dump_yaml, to_plain
from gkd.core.errors import GkdError
from gkd.core.files import atomic_write
from gkd.study.jobs import ROOT, Launch, child_environment, last_error, log_size, run_all
from gkd.study.plan import PlannedRun, StudyPlan, describe_changes
from gkd.study.score import STUDENT_FILE, SetKey, StudySets, current_score, file_sha256, read_score
from gkd.study.state import DONE_FILE, choose, is_finished, is_scored, require_same_settings
from gkd.study_schema import CONTROL
from gkd.train.trainer import Stop

logger = logging.getLogger(__name__)


class Study:
    """Carries a plan out. `choices` maps a method to its chosen trial, `failures` a run to what went wrong."""

    def __init__(self, plan: StudyPlan, sets: StudySets, launch: Launch, stop: Stop) -> None:
        self.plan = plan
        self.sets = sets
        self.launch = launch
        self.stop = stop
        self.choices: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self._environment = child_environment(plan.study.study.jobs)
        self._lock = threading.Lock()
        self._num_left = 0

    def run(self) -> None:
        """Tune the control, then the methods, then train and score the final runs."""
        self._make_centres()
        self._run_all(self.plan.tuning_runs(CONTROL), (self.sets.tuning,))
        self._choose([CONTROL])
        if CONTROL not in self.choices or self.stop.signal_number:
            return
        methods = list(self.plan.study.methods)
        control = self.choices[CONTROL]
        trials = [run for method in methods for run in self.plan.tuning_runs(method, control)]
        self._run_all(trials, (self.sets.tuning,))
        self._choose(methods)
        finals = [run for method, trial in self.choices.items() for run in self.plan.final_runs(method, control, trial)]
        self._run_all(finals, self.sets.tests)

    def _choose(self, methods: Sequence[str]) -> None:
        if self.stop.signal_number:
            return
        for method in methods:
            runs = self.plan.tuning_runs(method, self.choices.get(CONTROL, 0))
            choice = choose(runs, self.sets.tuning, skip=self.failures)
            if choice is None:
                self.failures[method] = "every trial failed, so no settings could be chosen"
                logger.error("%s: every trial failed, so it gets no final runs", method)
                continue
            self.choices[method] = choice
            if runs:
                logger.info("%s: trial %d is chosen: %s", method, choice + 1, describe_changes(runs[choice].changes))

    def _run_all(self, runs: Sequence[PlannedRun], keys: Sequence[SetKey]) -> None:
        if self.stop.signal_number:
            return
        runs = [run for run in runs if run.name not in self.failures]
        todo = [run for run in runs if not (is_finished(run) and is_scored(run, keys))]
        if len(todo) < len(runs):
            logger.info("%d of %d run(s) are done already", len(runs) - len(todo), len(runs))
        self._num_left = len(todo)
        tasks = [self._task(run, keys) for run in todo]
        run_all(tasks, self.plan.study.study.jobs, self.launch, self.stop)

    def _task(self, run: PlannedRun, keys: Sequence[SetKey]) -> Callable[[], None]:
        def task() -> None:
            started = time.perf_counter()
            try:
                if not is_finished(run):
                    self._train(run)
                for key in keys:
                    if current_score(run.folder, key) is None:
                        self._score(run, key)
            except GkdError as error:
                if not self.stop.signal_number:
                    self._note_failure(run.name, str(error))
                return
            with self._lock:
                self._num_left -= 1
                minutes = (time.perf_counter() - started) / 60
                logger.info("end    %s, %.1f minutes, %d left in this part", run.name, minutes, self._num_left)

        return task

    def _note_failure(self, name: str, message: str) -> None:
        with self._lock:
            self._num_left -= 1
            self.failures[name] = message
        logger.error("failed %s: %s", name, message)

    def _train(self, run: PlannedRun) -> None:
        require_same_settings(run)
        logger.info("start  %s: seed %d, %s", run.name, run.seed, describe_changes(run.changes))
        config = self._write_config(run)
        self._command([str(ROOT / "tools" / "train.py"), str(config)], run.folder / "train.log")
        student = run.folder / STUDENT_FILE
        if not student.exists():
            raise GkdError(f"{student}: is missing, although training ended well; see {run.folder / 'train.log'}")
        _write_json(run.folder / DONE_FILE, {"student_sha256": file_sha256(student)})

    def _score(self, run: PlannedRun, key: SetKey) -> None:
        earlier = read_score(run.folder, key.path)
        if earlier is not None and key in self.sets.tests:
            logger.warning(
                "%s: its weights, the set %s or how it is read changed since it was scored: the test set is touched "
                "again (time %d for this run), and the report says so",
                run.name,
                key.path,
                earlier.num_scorings + 1,
            )
        arguments = ["-m", "gkd.cli.study_score", str(run.folder), str(key.path)]
        self._command(arguments + ([] if key.flip else ["--no-flip"]), run.folder / "score.log")
        if current_score(run.folder, key) is None:
            raise GkdError(f"{key.path}: no score was written; see {run.folder / 'score.log'}")

    def _make_centres(self) -> None:
        """Make what is kept of the methods' teachers (caches, class centres), once each, before anything trains.

        That also checks the teachers: one that is too weak, or is fed wrongly, ends the study here.

        Raises:
            GkdError: they could not be made.
        """
        mark = self.plan.folder / "centres.json"
        for method in self.plan.study.methods:
            run = self.plan.final_runs(method, 0, 0)[0]
            settings = run.config.teacher
            folder = None if settings is None else kept_folder(settings)
            if folder is None or self.stop.signal_number:
                continue
            teacher = _teacher_key(run)
            done = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else []
            if teacher in done and folder.exists():
                continue
            logger.info("start  embeddings of the teacher in %s", folder)
            command = [str(ROOT / "tools" / "prepare.py"), "centres", str(self._write_config(run))]
            run_all([partial(self._prepare, command)], 1, self.launch, self.stop)
            if not self.stop.signal_number:
                _write_json(mark, [*done, teacher])

    def _prepare(self, command: Sequence[str]) -> None:
        try:
            self._command(command, self.plan.folder / "centres.log")
        except GkdError as error:
            if not self.stop.signal_number:
                raise GkdError(f"nothing was trained, for the teacher was not embedded: {error}") from error

    def _command(self, arguments: Sequence[str], log: Path) -> None:
        """Run one of our tools; a failure is a GkdError with its last word."""
        start = log_size(log)
        code = self.launch([sys.executable, *arguments], log, self._environment)
        if code != 0:
            raise GkdError(f"{last_error(log, start).removeprefix('error: ')} (exit code {code}; {log})")

    def _write_config(self, run: PlannedRun) -> Path:
        path = self.plan.folder / "configs" / f"{run.name}.yaml"
        with atomic_write(path) as temporary:
            temporary.write_text(dump_yaml(run.config), encoding="utf-8")
        return path


def _teacher_key(run: PlannedRun) -> dict[str, Any]:
    """What the kept embeddings depend on, as plain values."""
    key: dict[str, Any] = to_plain(run.config.teacher)
    return key | {"data": to_plain(run.config.data.train)}


def _write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
