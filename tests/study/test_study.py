"""`tools/study.py`: what is run and in which order, what is chosen, what is never done twice, and what is refused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gkd.core.config import load_config, to_plain
from gkd.core.errors import DataError
from gkd.data import PairSet
from gkd.models import load_head, save_head
from gkd.schema import TrainRun
from gkd.study import report as study_report
from gkd.study.plan import StudyPlan
from gkd.study.score import read_score, read_verdicts
from tests.models.onnx_nets import face_net
from tests.study.tiny_study import (
    ABSENT,
    GKD,
    KD,
    FakeLaunch,
    InProcessLaunch,
    run_study,
    without_signals,
    write_inputs,
    write_study,
)
from tests.train.tiny_run import ROOT

TUNING = ["tuning/control-1", "tuning/control-2", "tuning/kd-1", "tuning/kd-2"]
FINAL = [f"final/{method}_seed{seed}" for method in ("control", "gkd", "kd") for seed in (1, 2)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture
def path(inputs: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path, inputs)


@pytest.fixture(autouse=True)
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a test's time; one test draws."""
    if not request.node.name.startswith("test_the_report_has"):
        monkeypatch.setattr(study_report, "plot_accuracies", lambda *_: None)
        monkeypatch.setattr(study_report, "plot_curves", lambda *_: None)


def refused(capsys: pytest.CaptureFixture[str], path: Path, *arguments: str) -> str:
    """The message of a study that is refused before anything is started."""
    launch = FakeLaunch()
    assert run_study(path, launch, *arguments) == 2
    assert launch.commands == []
    return capsys.readouterr().err


def settings_of(tmp_path: Path, name: str) -> dict[str, object]:
    return to_plain(load_config(tmp_path / "study" / "configs" / f"{name}.yaml", TrainRun))


def report_of(tmp_path: Path) -> dict[str, object]:
    return json.loads((tmp_path / "study" / "report.json").read_text())


# What is run


def test_trials_come_first_then_final_runs_and_each_is_scored_once(path, tmp_path):
    launch = FakeLaunch()
    assert run_study(path, launch) == 0
    assert launch.names("train") == TUNING + FINAL
    assert launch.names("score") == [f"{name} held_out" for name in TUNING] + [f"{name} test" for name in FINAL]


def test_the_best_trial_of_the_control_is_inherited_by_all(path, tmp_path):
    launch = FakeLaunch(lambda run: 0.05 if run.optim.lr == 0.1 else 0.2)
    assert run_study(path, launch) == 0
    for name in [*TUNING[2:], *FINAL]:
        assert settings_of(tmp_path, name)["optim"]["lr"] == 0.1


def test_of_equal_trials_the_earlier_is_chosen(path, tmp_path):
    assert run_study(path, FakeLaunch()) == 0
    assert settings_of(tmp_path, "final/gkd_seed1")["optim"]["lr"] == 0.05
    assert settings_of(tmp_path, "final/kd_seed1")["distill"][0]["weight"] == 2.0


def test_a_method_gets_its_own_best_trial(path, tmp_path):
    launch = FakeLaunch(lambda run: 0.05 if run.distill and run.distill[0].weight == 3.0 else 0.2)
    assert run_study(path, launch) == 0
    assert settings_of(tmp_path, "final/kd_seed2")["distill"][0]["weight"] == 3.0
    assert settings_of(tmp_path, "final/gkd_seed2")["distill"][0]["weight"] == 1.0


def test_runs_differ_in_folder_seed_and_method_alone(path, tmp_path):
    assert run_study(path, FakeLaunch()) == 0
    control, student = settings_of(tmp_path, "final/control_seed2"), settings_of(tmp_path, "final/gkd_seed2")
    assert (control.pop("teacher"), control.pop("distill")) == (None, [])
    assert student.pop("teacher")["run"].endswith("teacher")
    assert student.pop("distill")[0]["loss"]["grouping"]["k"] == 3
    assert control["run"].pop("folder") == str(tmp_path / "study" / "final" / "control_seed2")
    assert student["run"].pop("folder") == str(tmp_path / "study" / "final" / "gkd_seed2")
    assert control == student
    assert control["run"] == {"seed": 2}
    assert settings_of(tmp_path, "tuning/kd-1")["run"]["seed"] == 7


def test_what_the_base_says_of_evaluation_and_resuming_is_overridden(inputs, tmp_path):
    base = yaml.safe_load((inputs / "base.yaml").read_text())
    base["evaluation"] = {"sets": [str(inputs / "test.bin")]}
    base["train"]["resume"] = "never"
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    study = write_study(tmp_path, inputs, study={"base": str(tmp_path / "base.yaml")})
    assert run_study(study, FakeLaunch()) == 0
    settings = settings_of(tmp_path, "final/control_seed1")
    assert (settings["evaluation"]["sets"], settings["train"]["resume"]) == ([], "auto")


def test_a_method_may_change_the_teacher_and_other_settings(inputs, tmp_path):
    method = KD | {"teacher": {"precision": "bf16"}, "overrides": {"data.on_bad_record": "skip"}}
    assert run_study(write_study(tmp_path, inputs, methods={"kd": method}), FakeLaunch()) == 0
    settings = settings_of(tmp_path, "final/kd_seed1")
    assert (settings["teacher"]["precision"], settings["data"]["on_bad_record"]) == ("bf16", "skip")
    assert settings_of(tmp_path, "final/control_seed1")["data"]["on_bad_record"] == "raise"


def test_a_method_without_distillation_gets_no_teacher(inputs, tmp_path):
    methods = {"narrow": {"overrides": {"margin.margin": 0.1}}, "gkd": GKD}
    assert run_study(write_study(tmp_path, inputs, methods=methods), FakeLaunch()) == 0
    assert settings_of(tmp_path, "final/narrow_seed1")["teacher"] is None


def test_the_flip_of_tuning_and_test_are_their_own(inputs, tmp_path):
    study = write_study(tmp_path, inputs, tuning={"flip": False})
    assert run_study(study, FakeLaunch()) == 0
    folder = tmp_path / "study"
    assert read_score(folder / "tuning" / "kd-1", inputs / "held_out.bin").flip is False
    assert read_score(folder / "final" / "kd_seed1", inputs / "test.bin").flip is True


def test_class_centres_are_made_once_before_anything_trains(inputs, tmp_path):
    centres = {"folder": str(tmp_path / "centres")}
    study = write_study(tmp_path, inputs, teacher={"centres": centres})
    launch = FakeLaunch(fail=lambda run: run.run.seed == 2)
    assert run_study(study, launch) == 2
    assert launch.names("centres") == ["final/gkd_seed1"]
    assert launch.commands[0] == ("centres", "final/gkd_seed1")
    again = FakeLaunch()
    assert run_study(study, again) == 0
    assert again.names("centres") == []


def test_nothing_trains_where_centres_cannot_be_made(inputs, tmp_path, capsys):
    class NoCentres(FakeLaunch):
        def make_centres(self, run, log):
            log.write_text("error: no such teacher\n")
            return 2

    study = write_study(tmp_path, inputs, teacher={"centres": {"folder": str(tmp_path / "centres")}})
    assert run_study(study, launch := NoCentres()) == 2
    assert launch.names("train") == []
    message = capsys.readouterr().err
    assert "nothing was trained, for the teacher was not embedded: no such teacher (exit code 2" in message


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_teachers_are_tried_before_anything_trains(inputs, tmp_path, capsys, arguments):
    foreign = {
        "run": None,
        "backbone": {"name": f"onnx:{tmp_path / 'none.onnx'}"},
        "input": {"color": "rgb", "mean": [127.5] * 3, "std": [127.5] * 3},
        "centres": {"folder": str(tmp_path / "centres")},
    }
    missing = write_study(tmp_path, inputs, teacher=foreign)
    assert refused(capsys, missing, *arguments).count("none.onnx: no such file") == 1
    face_net(tmp_path / "none.onnx", side=64)
    assert "none.onnx" in refused(capsys, missing, *arguments)
    weights, meta = load_head(inputs / "teacher" / "weights" / "head.pt")
    shutil.copytree(inputs / "teacher", tmp_path / "other")
    save_head(tmp_path / "other" / "weights" / "head.pt", weights[:5], {**meta, "num_classes": 5})
    study = write_study(tmp_path, inputs, teacher={"run": str(tmp_path / "other")})
    assert "has 5 classes, the training data have 6" in refused(capsys, study, *arguments)


@pytest.mark.parametrize("arguments", [(), ("--dry-run",)])
def test_images_of_a_test_set_are_refused_for_tuning(inputs, tmp_path, capsys, arguments):
    test, held_out = PairSet.load(inputs / "test.bin"), PairSet.load(inputs / "held_out.bin")
    images = [*held_out.images[:-2], *test.images[:2]]
    PairSet(images, held_out.is_same).save(tmp_path / "leaky.bin")
    study = write_study(tmp_path, inputs, tuning={"pairs": str(tmp_path / "leaky.bin")})
    assert "2 of the images of" in refused(capsys, study, *arguments)


def test_a_trial_that_changed_is_refused_before_the_others_are_chosen_from(path, tmp_path, capsys):
    assert run_study(path, FakeLaunch()) == 0
    capsys.readouterr()
    message = refused(capsys, path, "control.trials=[{optim.lr: 0.05}, {optim.lr: 0.3}]")
    assert "tuning/control-2 holds a run of other settings (optim.lr: 0.1 there, 0.3 now)" in message


# What is not repeated


def test_a_second_call_starts_nothing(path, tmp_path, capsys):
    assert run_study(path, FakeLaunch()) == 0
    first = (tmp_path / "study" / "report.md").read_text()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "study").glob("*/*/**/*") if file.is_file()}
    again = FakeLaunch()
    assert run_study(path, again) == 0
    assert again.commands == []
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert (tmp_path / "study" / "report.md").read_text() == first
    assert "was scored 6 time(s) for 6 final run(s)." in first


def test_a_new_seed_and_a_new_method_add_their_runs_alone(inputs, tmp_path):
    assert run_study(write_study(tmp_path, inputs, methods={"gkd": GKD}), FakeLaunch()) == 0
    more = write_study(tmp_path, inputs, methods={"gkd": GKD, "kd": KD})
    launch = FakeLaunch()
    assert run_study(more, launch, "study.seeds=[1, 2, 3]") == 0
    added = ("control_seed3", "gkd_seed3", "kd_seed1", "kd_seed2", "kd_seed3")
    assert launch.names("train") == [f"final/{name}" for name in added]


def test_changed_weights_are_scored_again_with_a_warning_and_the_report_counts_it(path, tmp_path, capsys):
    assert run_study(path, FakeLaunch()) == 0
    run = tmp_path / "study" / "final" / "gkd_seed2"
    (run / "weights" / "student.pt").write_text("other weights")
    launch = FakeLaunch()
    assert run_study(path, launch) == 0
    assert launch.commands == [("score", "final/gkd_seed2 test")]
    captured = capsys.readouterr()
    assert "the test set is touched again (time 2 for this run)" in captured.err
    assert "was scored 7 time(s) for 6 final run(s) (more than once: final/gkd_seed2)" in captured.out


def test_another_test_set_is_scored_without_training(path, inputs, tmp_path):
    assert run_study(path, FakeLaunch()) == 0
    shutil.copy(inputs / "test.bin", tmp_path / "second.bin")
    launch = FakeLaunch()
    assert run_study(path, launch, f"test.sets=[{inputs / 'test.bin'}, {tmp_path / 'second.bin'}]") == 0
    assert launch.commands == [("score", f"{name} second") for name in FINAL]
    assert list(report_of(tmp_path)["sets"]) == ["test", "second"]


def test_a_run_of_other_settings_is_neither_taken_for_done_nor_overwritten(path, tmp_path, capsys):
    assert run_study(path, FakeLaunch()) == 0
    launch = FakeLaunch()
    assert run_study(path, launch, "methods.gkd.overrides={data.on_bad_record: skip}") == 2
    assert launch.commands == []
    message = capsys.readouterr().err
    assert "holds a run of other settings (data.on_bad_record: 'raise' there, 'skip' now)" in message


def test_another_teacher_is_another_setting(path, inputs, tmp_path, capsys):
    assert run_study(path, FakeLaunch()) == 0
    assert run_study(path, FakeLaunch(), f"teacher.run={tmp_path}") == 2
    assert "(teacher.run: " in capsys.readouterr().err


def test_settings_that_change_no_result_do_not_repeat_a_run(path):
    assert run_study(path, FakeLaunch()) == 0
    launch = FakeLaunch()
    assert run_study(path, launch, "methods.kd.overrides={data.workers: 1, train.log_every: 2}") == 0
    assert launch.commands == []


def test_a_study_stopped_in_the_middle_goes_on_where_it_was(path, capsys):
    class Stopping(FakeLaunch):
        """Takes Ctrl-C during its fifth command, as a training process that saves and ends."""

        def __call__(self, command, log, environment):
            if len(self.commands) == 4:
                self.commands.append(("stopped", ""))
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)
                return 130
            return super().__call__(command, log, environment)

    stopped = Stopping()
    assert run_study(path, stopped) == 130
    assert stopped.commands[4:] == [("stopped", "")]
    assert "the same command goes on from here" in capsys.readouterr().err
    rest = FakeLaunch()
    assert run_study(path, rest) == 0
    assert rest.names("train") == [*TUNING[2:], *FINAL]


def test_a_run_that_was_trained_but_not_scored_is_only_scored(path):
    class NoScore(FakeLaunch):
        def score(self, run_folder, set_path, flip):
            return super().score(run_folder, set_path, flip) if set_path.stem == "held_out" else 1

    assert run_study(path, NoScore()) == 2
    launch = FakeLaunch()
    assert run_study(path, launch) == 0
    assert launch.commands == [("score", f"{name} test") for name in FINAL]


def test_a_damaged_score_is_named(path, tmp_path, capsys):
    assert run_study(path, FakeLaunch()) == 0
    score = tmp_path / "study" / "final" / "gkd_seed1" / "study_test.json"
    score.write_text("{}")
    assert run_study(path, FakeLaunch()) == 2
    assert f"{score}: is no score of a study" in capsys.readouterr().err


# What fails


def test_a_run_that_fails_does_not_stop_the_others_and_is_reported(path, tmp_path, capsys):
    launch = FakeLaunch(fail=lambda run: run.run.folder.name == "gkd_seed1")
    assert run_study(path, launch) == 2
    assert launch.names("train") == TUNING + FINAL
    captured = capsys.readouterr()
    assert "failed final/gkd_seed1: step 2: the loss is not finite (exit code 2; " in captured.err
    assert "failed  final/gkd_seed1: step 2: the loss is not finite" in captured.out
    row = next(line for line in captured.out.splitlines() if line.startswith("gkd "))
    assert "(1 run(s) missing)" in row
    assert "failed: step 2: the loss is not finite" in (tmp_path / "study" / "report.md").read_text()


def test_the_gap_is_over_the_seeds_that_both_have(path, tmp_path):
    rates = {"control": 0.2, "gkd": 0.1, "kd": 0.2}
    launch = FakeLaunch(
        lambda run: rates[run.run.folder.name.split("_")[0].split("-")[0]] if run.run.seed != 2 else 0.5,
        fail=lambda run: run.run.folder.name == "gkd_seed2",
    )
    assert run_study(path, launch) == 2
    control, gkd, kd = report_of(tmp_path)["sets"]["test"]
    assert gkd["gap"]["gap"] == pytest.approx(gkd["accuracies"]["1"] - control["accuracies"]["1"])
    assert kd["gap"]["gap"] == 0


def test_a_failed_trial_is_not_chosen(path, tmp_path):
    launch = FakeLaunch(fail=lambda run: run.run.folder.name == "control-1")
    assert run_study(path, launch) == 2
    assert settings_of(tmp_path, "final/gkd_seed1")["optim"]["lr"] == 0.1


def test_a_method_whose_trials_all_fail_gets_no_final_runs(path, capsys):
    launch = FakeLaunch(fail=lambda run: run.run.folder.name.startswith("kd-"))
    assert run_study(path, launch) == 2
    assert launch.names("train") == TUNING + FINAL[:4]
    assert "kd: every trial failed, so no settings could be chosen" in capsys.readouterr().out


def test_a_control_whose_trials_all_fail_ends_the_study_with_a_report(path, tmp_path):
    launch = FakeLaunch(fail=lambda run: run.run.folder.name.startswith("control-"))
    assert run_study(path, launch) == 2
    assert launch.names("train") == TUNING[:2]
    assert "control failed: every trial failed" in (tmp_path / "study" / "report.md").read_text()


def test_a_failed_run_is_tried_again(path):
    assert run_study(path, FakeLaunch(fail=lambda run: run.run.folder.name == "gkd_seed1")) == 2
    launch = FakeLaunch()
    assert run_study(path, launch) == 0
    assert launch.names("train") == ["final/gkd_seed1"]


def test_two_studies_in_one_folder_are_refused(path, tmp_path, capsys):
    import fcntl

    (tmp_path / "study").mkdir()
    with (tmp_path / "study" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "study.folder: another study is running in" in refused(capsys, path)


# What is refused before anything trains


def test_all_mistakes_of_all_runs_come_at_once_with_their_lines(inputs, tmp_path, capsys):
    path = write_study(tmp_path, inputs)
    text = path.read_text().replace("optim.lr: 0.1", "optim.lrr: 0.1").replace("name: top_k", "name: topk")
    path.write_text(text.replace("distill.0.weight: 3.0", "distill.2.weight: 3.0"))
    lines = refused(capsys, path).splitlines()
    numbered = {line.strip(): number for number, line in enumerate(path.read_text().splitlines(), 1)}
    assert lines[0] == f"error: invalid study {path}:"
    places = [
        f"  line {numbered['- optim.lrr: 0.1']}  control.trials.1.optim.lrr: unknown key; did you mean `lr`?",
        f"  line {numbered['name: topk']}  methods.gkd.distill.0.loss.grouping.name: unknown name `topk`",
        f"  line {numbered['- distill.2.weight: 3.0']}  methods.kd.trials.1.distill.2.weight: `distill` is a list of 1",
    ]
    for line, place in zip(lines[1:], places, strict=True):
        assert line.startswith(place)


def test_a_mistake_in_the_base_names_its_line_there(inputs, tmp_path, capsys):
    base = tmp_path / "base.yaml"
    base.write_text((inputs / "base.yaml").read_text().replace("batch_size", "batchsize"))
    message = refused(capsys, write_study(tmp_path, inputs, study={"base": str(base)}))
    number = next(i for i, line in enumerate(base.read_text().splitlines(), 1) if "batchsize" in line)
    assert f"study.base: line {number} of {base}, as in tuning/control-1: train.batchsize: unknown key" in message


def test_a_mistake_on_the_command_line_is_told_as_such(path, capsys):
    message = refused(capsys, path, "methods.kd.trials=[{distill.0.wait: 1}]")
    assert "  command line  methods.kd.trials.0.distill.0.wait: unknown key; did you mean `weight`?" in message


def test_keys_of_the_study_itself_are_checked_like_any_config(path, capsys):
    message = refused(capsys, path, "study.job=2", "tuning.seed=-1")
    assert "command line  study.job: unknown key; did you mean `jobs`?" in message
    assert "command line  tuning.seed: expected a number of at least 0, got -1" in message


@pytest.mark.parametrize(
    ("sections", "text"),
    [
        ({"tuning": {"seed": 2}}, "seed: 2 is also one of study.seeds"),
        ({"study": {"seeds": [1, 1]}}, "study.seeds: a seed is named twice"),
        ({"study": {"seeds": []}}, "study.seeds: expected at least 1 entries"),
        ({"methods": {"control": GKD}}, "`control` is the method without distillation"),
        ({"methods": {"a/b": GKD}}, "the name `a/b` must be 1 to 64 letters"),
        ({"methods": {"plain": {}}}, "teacher: is set, but no method has a `distill`"),
        ({"teacher": ABSENT}, "methods.gkd.distill: needs `teacher`, which is not set"),
        ({"control": {"trials": []}}, "control.trials: expected at least 1 entries"),
    ],
)
def test_an_unfair_or_impossible_study_is_refused(inputs, tmp_path, capsys, sections, text):
    assert text in refused(capsys, write_study(tmp_path, inputs, **sections))


def test_tuning_on_a_test_set_is_refused_however_its_path_is_written(path, inputs, capsys):
    odd = inputs / ".." / inputs.name / "test.bin"
    message = refused(capsys, path, f"tuning.pairs={odd}")
    assert f"pairs: {odd} is also one of test.sets" in message


def test_a_copy_of_a_test_set_is_no_tuning_set(path, inputs, tmp_path, capsys):
    shutil.copy(inputs / "test.bin", tmp_path / "copy.bin")
    message = refused(capsys, path, f"tuning.pairs={tmp_path / 'copy.bin'}")
    assert "copy.bin has the content of the test set" in message


def test_two_test_sets_of_one_name_are_refused(path, inputs, tmp_path, capsys):
    message = refused(capsys, path, f"test.sets=[{inputs / 'test.bin'}, {tmp_path / 'test.bin'}]")
    assert "test.sets: two sets are named `test`" in message


def test_a_base_that_distils_is_refused(inputs, tmp_path, capsys):
    base = yaml.safe_load((inputs / "base.yaml").read_text()) | {"distill": [{"loss": "kd"}]}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    message = refused(capsys, write_study(tmp_path, inputs, study={"base": str(tmp_path / "base.yaml")}))
    assert "sets `distill`; the base is the control, which learns from no teacher" in message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read"),
        (b"- 1\n", "must be a mapping"),
        (b"a: [\n", "not valid YAML"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_base_that_is_no_config_is_refused(inputs, tmp_path, capsys, content, text):
    base = tmp_path / "base.yaml"
    if content is not None:
        base.write_bytes(content)
    assert text in refused(capsys, write_study(tmp_path, inputs, study={"base": str(base)}))


def test_all_missing_files_are_named(path, capsys):
    trials = "control.trials=[{data.train.path: no.rec}]"
    message = refused(capsys, path, "test.sets=[none.bin]", "teacher.run=nowhere", trials)
    assert "test.sets: no such file or folder: none.bin" in message
    assert "teacher.run (gkd): no such file or folder: nowhere" in message
    assert "data.train.path (control): no such file or folder: no.rec" in message


# The list and the report


def test_a_dry_run_lists_every_run_and_starts_none(path, tmp_path, capsys):
    launch = FakeLaunch()
    assert run_study(path, launch, "--dry-run") == 0
    assert launch.commands == []
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "/" in line.split(" ")[0]}
    assert set(rows) == {*TUNING, *FINAL}
    assert {row[1] for row in rows.values()} == {"missing"}
    assert rows["tuning/control-2"][2:] == ["7", "optim.lr=0.1"]
    assert rows["final/gkd_seed2"][2:] == ["2", "as", "tuning", "will", "choose"]
    assert "10 runs, 10 to do" in text
    assert not (tmp_path / "study").exists()


def test_a_dry_run_tells_what_is_done_and_what_was_chosen(path, tmp_path, capsys):
    assert run_study(path, FakeLaunch(fail=lambda run: run.run.folder.name == "kd_seed1")) == 2
    (tmp_path / "study" / "final" / "gkd_seed1" / "study_test.json").unlink()
    capsys.readouterr()
    assert run_study(path, FakeLaunch(), "--dry-run") == 0
    rows = {line.split(" ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert " done " in rows["final/control_seed1"]
    assert " to be scored " in rows["final/gkd_seed1"]
    assert " begun " in rows["final/kd_seed1"]
    assert "optim.lr=0.05 distill=kd distill.0.weight=2.0" in rows["final/kd_seed2"]


def test_the_report_has_methods_runs_counts_and_provenance(path, inputs, tmp_path, capsys):
    rates = {"control": 0.3, "gkd": 0.05, "kd": 0.3}
    launch = FakeLaunch(lambda run: rates[run.run.folder.name.split("_")[0].split("-")[0]])
    assert run_study(path, launch) == 0
    report = (tmp_path / "study" / "report.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in report.splitlines() if line.startswith("| ")}
    control, gkd, kd = (lines[name] for name in ("control", "gkd", "kd"))
    assert control.split(" | ")[1] == "2"
    assert gkd.split(" | ")[1] == "1"
    assert "| better |" in gkd
    assert "| no difference seen |" in kd
    assert "| 0.2 |" in kd  # two steps of six seconds
    for name in [*TUNING, *FINAL]:
        assert f"| {name} | " in report
    assert report.count("| chosen |") == 2
    for text in (
        "was scored 6 time(s) for 6 final run(s).",
        "git_commit abc",
        "fingerprint ",
        "Teacher: verification accuracy 0.9900 on held_out, training rank-1 0.9500 on 48 images.",
        "control's: optim.lr=0.05.",
        "they do not cover which identities or which seeds",
    ):
        assert text in report
    shown = capsys.readouterr().out
    assert "TAR@FAR=1e-3" in shown
    assert str(tmp_path / "study" / "report.md") in shown
    for name in ("accuracy_test.png", "loss.png"):
        assert (tmp_path / "study" / name).read_bytes().startswith(b"\x89PNG")


def test_the_json_report_agrees_with_the_stored_verdicts(path, inputs, tmp_path):
    launch = FakeLaunch(lambda run: 0.05 if run.distill else 0.3)
    assert run_study(path, launch) == 0
    control, gkd, _ = report_of(tmp_path)["sets"]["test"]
    folder = tmp_path / "study" / "final"
    for seed in ("1", "2"):
        right = read_verdicts(folder / f"gkd_seed{seed}", inputs / "test.bin")
        assert gkd["accuracies"][seed] == pytest.approx(right.mean())
    assert gkd["gap"]["gap"] == pytest.approx(gkd["mean"] - control["mean"])
    assert gkd["gap"]["low"] > 0
    assert gkd["gap"]["verdict"] == "better"
    assert gkd["std"] == pytest.approx(abs(gkd["accuracies"]["1"] - gkd["accuracies"]["2"]) / 2**0.5)


def test_missing_verdicts_are_named(tmp_path):
    with pytest.raises(DataError, match="no verdicts of pairs can be read"):
        read_verdicts(tmp_path, Path("lfw.bin"))
    (tmp_path / "study_lfw.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="no verdicts of pairs can be read"):
        read_verdicts(tmp_path, Path("lfw.bin"))


def test_every_planned_run_has_a_place_of_its_own(path):
    plan = StudyPlan(path)
    runs = [run for method in plan.methods for run in [*plan.tuning_runs(method), *plan.final_runs(method, 0, 0)]]
    assert len({run.folder for run in runs}) == len(runs)


# The real tools


@pytest.fixture(scope="module")
def trained_inputs(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs whose teacher is a finished run."""
    from gkd.cli.train import main

    assert main([str(inputs / "base.yaml"), f"run.folder={inputs / 'teacher'}"]) == 0
    return inputs


def test_two_methods_two_seeds_two_trials_from_end_to_end(trained_inputs, tmp_path, monkeypatch, capsys):
    without_signals(monkeypatch)
    study = write_study(tmp_path, trained_inputs, methods={"gkd": GKD, "kd": KD})
    launch = InProcessLaunch()
    assert run_study(study, launch) == 0
    assert launch.names("train") == TUNING[:2] + FINAL
    results = report_of(tmp_path)["sets"]["test"]
    assert [result["method"] for result in results] == ["control", "gkd", "kd"]
    for result in results:
        for seed, accuracy in result["accuracies"].items():
            run = tmp_path / "study" / "final" / f"{result['method']}_seed{seed}"
            right = read_verdicts(run, trained_inputs / "test.bin")
            assert (len(right), right.mean()) == (40, pytest.approx(accuracy))
            assert json.loads((run / "study_done.json").read_text())["student_sha256"]
    again = InProcessLaunch()
    assert run_study(study, again) == 0
    assert again.commands == []


@pytest.mark.slow
def test_a_study_of_real_processes_survives_a_termination(trained_inputs, tmp_path):
    study = write_study(
        tmp_path, trained_inputs, study={"seeds": [1], "jobs": 2}, control={"trials": [{}]}, methods={"kd": KD}
    )
    command = [sys.executable, str(ROOT / "tools" / "study.py"), str(study)]
    output = tmp_path / "output"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        deadline = time.monotonic() + 120
        while "start  final/" not in output.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 128 + signal.SIGTERM, output.read_text()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "was scored 2 time(s) for 2 final run(s)." in finished.stdout


def test_logging_shows_a_line_at_the_start_and_end_of_each_run(path, capsys):
    assert run_study(path, FakeLaunch()) == 0
    assert logging.getLogger().level == logging.INFO
    lines = capsys.readouterr().err.splitlines()
    for name in [*TUNING, *FINAL]:
        assert sum(f"start  {name}: seed " in line for line in lines) == 1
        assert sum(f"end    {name}, 0.0 minutes, " in line for line in lines) == 1
