"""`tools/train.py` met by a new user: every mistake gets one clear message and exit code 2, and nothing is lost."""

from __future__ import annotations

import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch

from gkd.cli.train import Run, main
from gkd.core.config import load_config
from gkd.models import load_head, save_head
from gkd.schema import TrainRun
from tests.train.tiny_run import config, finish, train, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


@pytest.fixture(scope="module")
def teacher_run(folder):
    """A finished run of two epochs."""
    assert main([str(config(folder)), f"run.folder={folder / 'teacher'}"]) == 0
    return folder / "teacher"


@pytest.fixture
def path(folder, tmp_path):
    """A config whose run folder is new."""
    copy = tmp_path / "run.yaml"
    copy.write_text(config(folder).read_text().replace(str(folder / "run"), str(tmp_path / "run")))
    return copy


def distilled(folder: Path, teacher_run: Path, **teacher: object) -> Path:
    settings = {"run": str(teacher_run), "check_pairs": str(folder / "pairs.bin"), "min_accuracy": 0.3}
    terms = [{"loss": {"name": "gkd", "grouping": {"name": "top_k", "k": 3}}, "warmup_epochs": 0}]
    return config(folder, teacher={**settings, "min_train_rank1": 0.1, **teacher}, distill=terms)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a refused call: one, without a traceback."""
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("error: ") == 1
    return message[message.index("error: ") :]


class Command:
    """Unpickled, this would run a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


def test_a_run_leaves_config_logs_checkpoints_and_weights(teacher_run):
    names = {entry.name for entry in teacher_run.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "tensorboard", "checkpoints", "weights"} <= names
    assert (teacher_run / "checkpoints" / "step_00000012" / "complete.json").exists()


def test_the_written_config_alone_repeats_the_run(teacher_run, tmp_path):
    assert main([str(teacher_run / "config.yaml"), f"run.folder={tmp_path / 'again'}"]) == 0
    before, after = (
        torch.load(run / "weights" / "student.pt", weights_only=True)["state_dict"]
        for run in (teacher_run, tmp_path / "again")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def first_weights(path: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """The backbone's and the head's tensors before the first step."""
    objective = Run(load_config(path, TrainRun, list(overrides)), []).objective
    parts = {"backbone": objective.backbone, "head": objective.head}
    return {
        f"{name}.{key}": tensor.clone() for name, part in parts.items() for key, tensor in part.state_dict().items()
    }


def test_a_student_and_its_control_start_from_the_same_weights(folder, teacher_run):
    """Building the teacher draws random numbers too; they must not reach the student's."""
    control = first_weights(config(folder))
    student = first_weights(distilled(folder, teacher_run))
    assert control.keys() == student.keys()
    assert not [name for name in control if not torch.equal(control[name], student[name])]
    other = first_weights(config(folder), "run.seed=6")
    assert [name for name in control if not torch.equal(control[name], other[name])]


def test_a_finished_run_is_not_repeated(teacher_run, folder):
    before = (teacher_run / "metrics.jsonl").read_bytes()
    assert main([str(config(folder)), f"run.folder={teacher_run}"]) == 0
    assert (teacher_run / "metrics.jsonl").read_bytes() == before


def test_other_settings_in_the_same_folder_are_refused(teacher_run, folder, capsys):
    message = refused(capsys, config(folder), f"run.folder={teacher_run}", "optim.lr=0.5")
    assert "belongs to a run with other settings (optim.lr: 0.05 there, 0.5 now)" in message


def test_never_resuming_does_not_overwrite(teacher_run, folder, capsys):
    message = refused(capsys, config(folder), f"run.folder={teacher_run}", "train.resume=never")
    assert "already holds a run, which would be lost" in message


def test_a_wrong_resume_path_is_refused(path, tmp_path, capsys):
    assert "is no whole checkpoint" in refused(capsys, path, f"train.resume={tmp_path / 'nothing'}")


def test_resuming_from_a_named_checkpoint_tells_what_changed(teacher_run, path, capsys):
    step = teacher_run / "checkpoints" / "step_00000006"
    assert main([str(path), f"train.resume={step}", "optim.lr=0.01"]) == 0
    assert "resuming with optim.lr=0.01, which was 0.05" in capsys.readouterr().err


def test_a_typo_is_named_with_its_line_and_the_right_name(path, capsys):
    path.write_text(path.read_text().replace("batch_size", "batchsize"))
    message = refused(capsys, path)
    assert f"invalid config {path}" in message
    assert "train.batchsize: unknown key; did you mean `batch_size`?" in message
    assert "line " in message


def test_a_missing_data_file_is_named(path, capsys):
    assert "nothing.rec" in refused(capsys, path, "data.train.path=nothing.rec")


def test_a_truncated_rec_is_an_error_and_names_the_place(folder, path, tmp_path, capsys):
    whole = (folder / "train.rec").read_bytes()
    (tmp_path / "cut.rec").write_bytes(whole[: len(whole) // 2])
    shutil.copy(folder / "train.idx", tmp_path / "cut.idx")
    message = refused(capsys, path, f"data.train.path={tmp_path / 'cut.rec'}")
    assert "cut.rec" in message or "cut.idx" in message


def test_a_text_file_is_no_pair_set(path, tmp_path, capsys):
    (tmp_path / "lfw.bin").write_text("404: not found\n")
    assert "lfw.bin" in refused(capsys, path, f"evaluation.sets=[{tmp_path / 'lfw.bin'}]")


def test_a_pickle_with_a_command_runs_nothing_as_pair_set(path, tmp_path, capsys):
    witness = tmp_path / "executed"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(([Command(witness)], [True])))
    message = refused(capsys, path, f"evaluation.sets=[{tmp_path / 'evil.bin'}]")
    assert "evil.bin" in message
    assert not witness.exists()


def test_a_pickle_with_a_command_runs_nothing_as_weights(folder, teacher_run, tmp_path, capsys):
    witness = tmp_path / "executed"
    evil = tmp_path / "evil"
    shutil.copytree(teacher_run, evil)
    (evil / "weights" / "student.pt").write_bytes(pickle.dumps({"state_dict": Command(witness)}))
    message = refused(capsys, distilled(folder, evil), f"run.folder={tmp_path / 'run'}")
    assert "student.pt" in message
    assert not witness.exists()


def test_a_pickle_with_a_command_runs_nothing_as_checkpoint(folder, teacher_run, path, tmp_path, capsys):
    witness = tmp_path / "executed"
    evil = tmp_path / "evil" / "step_00000012"
    shutil.copytree(teacher_run / "checkpoints" / "step_00000012", evil)
    (evil / ".metadata").write_bytes(pickle.dumps(Command(witness)))
    message = refused(capsys, path, f"train.resume={evil}")
    assert "step_00000012" in message
    assert not witness.exists()


def test_a_missing_teacher_is_an_error(folder, tmp_path, capsys):
    message = refused(capsys, distilled(folder, tmp_path / "nowhere"), f"run.folder={tmp_path / 'run'}")
    assert "nowhere" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_teacher_with_the_class_weights_of_others_is_refused_with_its_figures(folder, teacher_run, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(teacher_run, mixed)
    class_weights, meta = load_head(mixed / "weights" / "head.pt")
    save_head(mixed / "weights" / "head.pt", class_weights.roll(1, dims=0), meta)
    message = refused(capsys, distilled(folder, mixed), f"run.folder={tmp_path / 'run'}")
    assert "the teacher is too weak to learn from: verification accuracy " in message
    assert "rank-1 0.0000 on 48 training images (teacher.min_train_rank1 0.1)" in message


@pytest.mark.parametrize("missing", ["min_accuracy", "min_train_rank1"])
def test_the_minima_of_a_teacher_have_no_defaults(folder, teacher_run, capsys, missing):
    path = distilled(folder, teacher_run)
    path.write_text("".join(line for line in path.read_text().splitlines(True) if missing not in line))
    assert f"teacher.{missing}" in refused(capsys, path)


def test_a_teacher_of_other_classes_is_refused(teacher_run, tmp_path, capsys):
    write_data(tmp_path, images_per_identity=9)
    message = refused(capsys, distilled(tmp_path, teacher_run))
    assert "was trained on other data (fingerprint " in message


def test_weights_of_another_architecture_are_refused(folder, teacher_run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(teacher_run, other)
    content = torch.load(other / "weights" / "student.pt", weights_only=True)
    content["architecture"]["name"] = "iresnet34"
    torch.save(content, other / "weights" / "student.pt")
    message = refused(capsys, distilled(folder, other), f"run.folder={tmp_path / 'run'}")
    assert "student.pt" in message
    assert "iresnet" in message


def test_a_batch_larger_than_the_data_is_refused(path, capsys):
    assert "64 is larger than an epoch of 48 images" in refused(capsys, path, "train.batch_size=64")


def test_images_of_another_size_are_refused(path, capsys):
    assert "train.rec" in refused(capsys, path, "backbone.input_size=[48, 48]")


def test_a_folder_that_cannot_be_written_is_an_error(path, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "run.folder: cannot write in" in refused(capsys, path, f"run.folder={tmp_path / 'file' / 'run'}")


def test_two_runs_in_one_folder_are_refused(path, tmp_path, capsys):
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is writing in" in refused(capsys, path)


@pytest.mark.slow
def test_a_port_in_use_is_named(folder, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output = finish(
            train(config(folder), f"run.folder={tmp_path / 'run'}", environment=taken_port(port)), expected_code=2
        )
    assert f"could not form a group of 2 processes at 127.0.0.1:{port}" in output
    assert "Traceback" not in output


def taken_port(port: int) -> dict[str, str]:
    """What torchrun would tell rank 0 of two, with a port that something else listens on."""
    return {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def test_a_dry_run_prints_the_plan_and_trains_nothing(path, tmp_path, capsys):
    assert main([str(path), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "48 images of 6 classes" in plan
    assert "12 of 8 images, 6 an epoch, 2 epochs" in plan
    assert "ready to train" in plan
    assert not (tmp_path / "run").exists()


def test_a_dry_run_lists_all_that_is_in_the_way(path, capsys):
    code = main([str(path), "--dry-run", "data.train.path=none.rec", "evaluation.sets=[none.bin]"])
    plan = capsys.readouterr().out
    assert code == 2
    assert "none.rec" in plan
    assert "none.bin" in plan


def test_a_dry_run_sees_images_of_another_size(path, capsys):
    assert main([str(path), "--dry-run", "backbone.input_size=[48, 48]"]) == 2
    assert "train.rec" in capsys.readouterr().out.split("in the way:")[1]


def test_a_folder_whose_checkpoints_are_all_damaged_is_not_started_anew(teacher_run, folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(teacher_run, run)
    for marker in run.glob("checkpoints/step_*/complete.json"):
        marker.write_text("{")
    message = refused(capsys, config(folder), f"run.folder={run}")
    assert "holds checkpoints, but none is whole" in message
    assert (run / "weights" / "student.pt").read_bytes() == (teacher_run / "weights" / "student.pt").read_bytes()


def test_a_teacher_of_two_runs_is_refused(folder, teacher_run, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    shutil.copytree(teacher_run, mixed)
    class_weights, meta = load_head(mixed / "weights" / "head.pt")
    save_head(mixed / "weights" / "head.pt", class_weights[:, :8].clone(), meta)
    message = refused(capsys, distilled(folder, mixed), f"run.folder={tmp_path / 'run'}")
    assert "head.pt: its class weights have 8 numbers each and the teacher's embeddings 16" in message


def test_a_dry_run_sees_a_folder_that_cannot_be_made(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(config(folder)), f"run.folder={tmp_path / 'file' / 'run'}", "--dry-run"]) == 2
    assert f"run.folder: {tmp_path / 'file'} is not a folder; choose another folder" in capsys.readouterr().out


def test_a_warm_up_that_outlasts_the_run_is_told(teacher_run, folder, tmp_path, capsys):
    path = distilled(folder, teacher_run)
    options = ["distill.0.warmup_epochs=2", "distill.0.weight=0.5", f"run.folder={tmp_path / 'run'}"]
    told = "distill.0: the weight of gkd warms up over 2 epochs, and the run has 2: it never reaches 0.5"
    assert main([str(path), *options, "--dry-run"]) == 0
    assert told in capsys.readouterr().out
    assert main([str(path), *options]) == 0
    assert told in capsys.readouterr().err
    assert main([str(path), *options]) == 0
    assert "this run is finished already: all 12 steps are done" in capsys.readouterr().err
