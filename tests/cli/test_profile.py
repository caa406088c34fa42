"""`tools/profile.py`: the steps of a real run are measured in a folder of their own, and mistakes get one message."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gkd.cli.profile import main
from gkd.core.scopes import scope
from tests.train.tiny_run import ROOT, config, write_data

FEW = ["--steps", "2", "--warmup", "1"]
GKD = {"loss": {"name": "gkd", "grouping": {"name": "top_k", "k": 3}}, "warmup_epochs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


@pytest.fixture(scope="module")
def teacher_run(folder):
    """A finished run."""
    from gkd.cli.train import main as train

    assert train([str(config(folder)), f"run.folder={folder / 'teacher'}", "train.epochs=1"]) == 0
    return folder / "teacher"


@pytest.fixture
def path(folder, tmp_path):
    """A config whose run folder is new."""
    copy = tmp_path / "run.yaml"
    copy.write_text(config(folder).read_text().replace(str(folder / "run"), str(tmp_path / "run")))
    return copy


def distilled(folder: Path, teacher_run: Path, tmp_path: Path, **teacher: object) -> Path:
    # No teacher reaches these minima: they are not looked at, for they change no time.
    settings = {"run": str(teacher_run), "check_pairs": str(folder / "pairs.bin"), "min_accuracy": 1.0}
    run = {"folder": str(tmp_path / "run")}
    return config(folder, run=run, teacher={**settings, "min_train_rank1": 1.0, **teacher}, distill=[GKD])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("error: ") == 1
    return message[message.index("error: ") :]


def result(folder: Path) -> dict:
    return json.loads((folder / "profile.json").read_text())


def test_a_profile_tells_where_the_time_goes_and_keeps_out_of_the_runs_folder(path, tmp_path, capsys):
    assert main([str(path), *FEW, "log={wandb: {}, mlflow: {}}"]) == 0  # no server is told, nor a package needed
    text = capsys.readouterr().out
    assert "bound by: " in text
    assert "own overhead" in text
    assert "https://ui.perfetto.dev" in text
    out = tmp_path / "run-profile"
    own = result(out)["ranks"][0]
    assert sum(own["shares"].values()) == pytest.approx(1)
    assert own["num_steps"] == 2
    assert min(own["seconds"][phase] for phase in ("student_forward", "student_backward", "head_backward")) > 0
    assert 0 < own["own_overhead"] < 1
    assert result(out)["is_complete"] is True
    with gzip.open(out / "trace.json.gz", "rt") as file:
        assert sum(event.get("name") == "gkd/step" for event in json.load(file)["traceEvents"]) == 2
    assert not (tmp_path / "run").exists()
    assert not list((out / "checkpoints").glob("*"))
    assert not (out / "weights").exists()
    assert scope("a") is scope("b")


def test_a_finished_run_is_profiled_like_a_new_one_and_stays_as_it_is(teacher_run, folder, tmp_path, capsys):
    before = {entry: entry.stat().st_mtime_ns for entry in teacher_run.rglob("*")}
    arguments = [str(config(folder)), f"run.folder={teacher_run}", "train.epochs=1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), *FEW]) == 0
    assert {entry: entry.stat().st_mtime_ns for entry in teacher_run.rglob("*")} == before
    assert result(tmp_path / "out")["ranks"][0]["num_steps"] == 2


@pytest.mark.parametrize("head", ["softmax", "sharded", "partial_fc"])
def test_a_distilled_step_shows_its_teacher_and_its_loss(folder, teacher_run, tmp_path, head):
    arguments = [str(distilled(folder, teacher_run, tmp_path)), f"head={{name: {head}}}", "train.micro_batches=2"]
    assert main([*arguments, "data.augment=[flip, grey]", "--out", str(tmp_path / "out"), *FEW]) == 0
    seconds = result(tmp_path / "out")["ranks"][0]["seconds"]
    wanted = {"data", "augment", "teacher", "teacher_head", "student_forward", "student_backward", "head_forward"}
    wanted |= {"head_backward", "distill_forward", "clip", "optimizer", "rest"}
    if head == "softmax":  # elsewhere there is one way back for both
        wanted |= {"distill_backward"}
    assert wanted <= {phase for phase, value in seconds.items() if value > 0}


def test_a_kept_teacher_is_read_and_nothing_says_to_keep_it(folder, teacher_run, tmp_path, capsys):
    path = distilled(folder, teacher_run, tmp_path, cache={"folder": str(tmp_path / "kept")}, min_accuracy=0.0)
    assert main([str(path), "teacher.min_train_rank1=0", *FEW]) == 0
    assert result(tmp_path / "run-profile")["setup"]["teacher"] == "kept"
    assert "teacher.cache" not in capsys.readouterr().out


def test_an_earlier_profile_is_replaced(path, tmp_path):
    assert main([str(path), *FEW]) == 0
    assert main([str(path), "--steps", "3", "--warmup", "0"]) == 0
    assert result(tmp_path / "run-profile")["ranks"][0]["num_steps"] == 3


def test_a_folder_with_other_things_is_refused(path, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").write_text("dear")
    message = refused(capsys, path, "--out", tmp_path / "out", *FEW)
    assert "--out: " in message
    assert "holds other things (letters.txt)" in message
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["letters.txt"]


def test_a_file_and_the_runs_own_folder_are_refused(path, tmp_path, capsys):
    assert "is a file; name a folder" in refused(capsys, path, "--out", path, *FEW)
    assert "is the run's own folder" in refused(capsys, path, "--out", tmp_path / "run", *FEW)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--warmup", "-1"], "--warmup must be 0 or more, got -1"),
        (["train.batchsize=3"], "did you mean `batch_size`?"),
        (["train.batch_size=1000"], "train.batch_size: 1000 is larger than an epoch of 48 images"),
        (["data.train.path=nothing.rec"], "nothing.rec"),
    ],
)
def test_mistakes_get_one_message(path, capsys, arguments, message):
    assert message in refused(capsys, path, *arguments)


def test_a_run_that_fails_says_so_as_training_does(path, tmp_path, capsys):
    assert "not finite" in refused(capsys, path, "optim.lr=1e30", "optim.clip_norm=null", "schedule.warmup_epochs=0")
    assert result(tmp_path / "run-profile") == {"is_complete": False}
    assert main([str(path), *FEW]) == 0  # what it has left is no obstacle


def test_two_ranks_are_compared(path, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "tools" / "profile.py"), str(path), *FEW]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bound by: ") == 1
    assert "without communication" in done.stdout
    ranks = result(tmp_path / "run-profile")["ranks"]
    assert len(ranks) == 2
    for one in ranks:
        assert sum(one["shares"].values()) == pytest.approx(1)
        assert one["seconds"]["communication"] > 0
    assert [entry.name for entry in (tmp_path / "run-profile").glob("*trace*")] == ["trace.json.gz"]


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda tool: tool.name)
def test_no_tool_hides_the_standard_librarys_profile_behind_this_one(tool):
    """torch.compile imports cProfile, which imports `profile`: the folder of the tools must not be on the path."""
    lines = tool.read_text().splitlines()
    assert "sys.path[0] = str(Path(__file__).resolve().parents[1])" in [line.partition("  #")[0] for line in lines]
    assert not [line for line in lines if "sys.path.insert" in line]
