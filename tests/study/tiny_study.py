"""A study small enough for a test, and stand-ins for the processes that it starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from gkd.cli import train
from gkd.cli.study import main
from gkd.cli.study_score import main as score_main
from gkd.core.config import load_config
from gkd.data import PairSet, RecordFile
from gkd.evaluation import verify_distances
from gkd.evaluation.verification import judge_pairs
from gkd.models import InputSpec, create_backbone, save_head, save_student
from gkd.schema import TrainRun
from gkd.study import score as study_score
from tests.train.tiny_run import SIZE, config, picture, write_data

GKD = {"distill": [{"loss": {"name": "gkd", "grouping": {"name": "top_k", "k": 3}}, "warmup_epochs": 0}]}
KD = {"distill": [{"loss": {"name": "kd"}, "weight": 1.0, "warmup_epochs": 0}]}
ABSENT = object()


def write_held_out(path: Path) -> None:
    """Pairs of identities that neither the training images nor the test pairs show."""
    images, is_same = [], []
    for pair in range(40):
        left = 200 + pair % 7
        is_same.append(pair % 2 == 0)
        images += [picture(left, pair), picture(left if is_same[-1] else left + 7, 1000 + pair)]
    PairSet(images, is_same).save(path)


def write_inputs(folder: Path) -> None:
    """Training data, held-out and test pairs, the control's config, and an untrained network as a teacher's run."""
    write_data(folder)
    (folder / "pairs.bin").rename(folder / "test.bin")
    write_held_out(folder / "held_out.bin")
    config(folder, evaluation=None, train={"epochs": 1}).rename(folder / "base.yaml")
    data = RecordFile(folder / "train.rec")
    teacher = create_backbone("iresnet18", embedding_dim=16, width_multiplier=0.0625, input_size=(SIZE, SIZE))
    save_student(folder / "teacher/weights/student.pt", teacher, InputSpec(), {"step": 1, "total_steps": 1})
    meta = {"fingerprint": data.fingerprint, "margin": {"name": "cosface", "scale": 16.0, "margin": 0.2}}
    save_head(folder / "teacher/weights/head.pt", torch.randn(data.num_identities, 16), meta | {"num_classes": 6})


def write_study(folder: Path, inputs: Path, **sections: Any) -> Path:
    """Write a study over `inputs` whose folder is in `folder`; `sections` are merged into it, ABSENT ones left out."""
    plain: dict[str, Any] = {
        "study": {"folder": str(folder / "study"), "base": str(inputs / "base.yaml"), "seeds": [1, 2]},
        "tuning": {"pairs": str(inputs / "held_out.bin"), "seed": 7},
        "test": {"sets": [str(inputs / "test.bin")]},
        "teacher": {
            "run": str(inputs / "teacher"),
            "check_pairs": str(inputs / "held_out.bin"),
            "min_accuracy": 0.1,
            "min_train_rank1": 0.01,
        },
        "control": {"trials": [{"optim.lr": 0.05}, {"optim.lr": 0.1}]},
        "methods": {"gkd": GKD, "kd": KD | {"trials": [{"distill.0.weight": 2.0}, {"distill.0.weight": 3.0}]}},
    }
    for name, section in sections.items():
        both = isinstance(section, dict) and name in ("study", "tuning", "test", "teacher")
        plain[name] = {**plain[name], **section} if both else section
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in plain.items() if value is not ABSENT}, sort_keys=False)
    )
    return path


class FakeLaunch:
    """Stands for all processes of a study: training writes what the study reads of a run, scoring draws distances.

    Args:
        error_rate: of a run's config, the share of pairs that it gets wrong.
        fail: whether a run's training fails.
    """

    def __init__(
        self,
        error_rate: Callable[[TrainRun], float] = lambda run: 0.1,
        fail: Callable[[TrainRun], bool] = lambda run: False,
    ) -> None:
        self.error_rate = error_rate
        self.fail = fail
        self.commands: list[tuple[str, str]] = []
        self.environments: list[Mapping[str, str]] = []

    def __call__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.environments.append(environment)
        if "gkd.cli.study_score" in command:
            run_folder, set_path = (Path(argument) for argument in command[3:5])
            self.commands.append(("score", f"{run_folder.parent.name}/{run_folder.name} {set_path.stem}"))
            return self.score(run_folder, set_path, "--no-flip" not in command)
        run = load_config(command[-1], TrainRun)
        name = f"{run.run.folder.parent.name}/{run.run.folder.name}"
        if "centres" in command:
            self.commands.append(("centres", name))
            return self.make_centres(run, log)
        self.commands.append(("train", name))
        return self.train(run, Path(command[-1]), log)

    def train(self, run: TrainRun, path: Path, log: Path) -> int:
        folder = run.run.folder
        (folder / "config.yaml").write_text(path.read_text())
        if self.fail(run):
            log.write_text("step 1/6\nerror: step 2: the loss is not finite\n")
            return 2
        (folder / "weights").mkdir(exist_ok=True)
        (folder / "weights" / "student.pt").write_text(path.read_text())
        lines = [{"step": step, "loss/classification": 9 / step, "time/step_seconds": 6.0} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        start = {"python": "3.x", "torch": "2.x", "git_commit": "abc"}
        (folder / "run.json").write_text(json.dumps([start]))
        with log.open("a") as file:
            file.write(
                "12:00:00 teacher: verification accuracy 0.9900 on held_out, training rank-1 0.9500 on 48 images\n"
            )
        return 0

    def score(self, run_folder: Path, set_path: Path, flip: bool) -> int:
        run = load_config(run_folder / "config.yaml", TrainRun)
        is_same = np.arange(200) % 2 == 0
        is_right = np.random.default_rng(run.run.seed).random(200) >= self.error_rate(run)
        distances = np.where(is_same == is_right, 1.0, 2.0)
        earlier = study_score.read_score(run_folder, set_path)
        score = study_score.Score(
            study_score.file_sha256(run_folder / "weights" / "student.pt"),
            study_score.file_sha256(set_path),
            flip,
            1 + (earlier.num_scorings if earlier else 0),
            verify_distances(distances, is_same).to_json(),
        )
        study_score.write_score(run_folder, set_path, score, {"is_right": judge_pairs(distances, is_same)})
        return 0

    def make_centres(self, run: TrainRun, log: Path) -> int:
        assert run.teacher is not None
        assert run.teacher.centres is not None
        run.teacher.centres.folder.mkdir(parents=True)
        return 0

    def interrupt(self) -> None:
        """Nothing runs beside the test."""

    def kill(self) -> None:
        """Nothing runs beside the test."""

    def names(self, kind: str) -> list[str]:
        """What was trained, scored or prepared, in order."""
        return [name for each, name in self.commands if each == kind]


class InProcessLaunch(FakeLaunch):
    """The tools themselves, called in this process: everything is real but the processes."""

    def train(self, run: TrainRun, path: Path, log: Path) -> int:
        return train.main([str(path)])

    def score(self, run_folder: Path, set_path: Path, flip: bool) -> int:
        return score_main([str(run_folder), str(set_path), *([] if flip else ["--no-flip"])])


def without_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training run on a thread, where no signal handler can be set."""
    never = contextlib.nullcontext(SimpleNamespace(signal_number=0))
    monkeypatch.setattr(train, "StopOnSignal", lambda: never)


def run_study(path: Path, launch: FakeLaunch, *arguments: str) -> int:
    """The tool's exit code."""
    return main([str(path), *arguments], launch)
