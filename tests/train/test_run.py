"""Whole runs as a user starts them: resumed, stopped, on two processes, in micro-batches, refused."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from gkd.models import load_head, load_student
from gkd.train.metrics import read_metrics
from tests.train.tiny_run import config, finish, train, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


def losses(run: Path, name: str = "loss/total"):
    return read_metrics(run / "metrics.jsonl", name)


def wait_for_step(process, run: Path, step: int) -> None:
    """Until the run has logged `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        if (run / "metrics.jsonl").exists() and max(losses(run)[0], default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {step} within two minutes")


def weights(run: Path) -> dict[str, torch.Tensor]:
    backbone, _, _ = load_student(run / "weights" / "student.pt")
    return {**backbone.state_dict(), "class weights": load_head(run / "weights" / "head.pt")[0]}


def assert_same_weights(left: Path, right: Path) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


# Live batch norm, mixed precision, accumulation, two workers, evaluation on: everything that a bit could get lost in.
HARD = (
    "train.micro_batches=2",
    "data.workers=2",
    "train.epochs=4",
    "train.save_every=5",
    "evaluation.every=4",
)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_killed_run_resumes_to_bit_identical_weights(folder, tmp_path, precision):
    path, settings = config(folder), (*HARD, f"train.precision={precision}")
    finish(train(path, *settings, f"run.folder={tmp_path / 'whole'}"))
    process = train(path, *settings, f"run.folder={tmp_path / 'killed'}")
    wait_for_step(process, tmp_path / "killed", 13)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    output = finish(train(path, *settings, f"run.folder={tmp_path / 'killed'}"))
    assert "resuming from" in output
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    first = losses(tmp_path / "whole")[0][0]  # in fp16 the loss scale has to come down first
    assert losses(tmp_path / "whole")[0] == list(range(first, 25))
    assert first == 1 if precision == "bf16" else 1 < first < 13


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_says_so_and_goes_on(folder, tmp_path, number, code):
    path = config(folder)
    process = train(path, "train.epochs=300", f"run.folder={tmp_path / 'run'}", "evaluation.sets=[]")
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(number)
    output = finish(process, code)
    assert "asked to stop: saved after step" in output
    done = max(losses(tmp_path / "run")[0])
    assert (tmp_path / "run" / "checkpoints" / f"step_{done:08d}" / "complete.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_leaves_the_loading_processes_until_the_save(folder, tmp_path, number, code):
    """As Ctrl-C in a terminal and launchers send it. The main process is held meanwhile: it cannot end them itself."""
    settings = ("train.epochs=300", "data.workers=2", "evaluation.sets=[]", f"run.folder={tmp_path / 'run'}")
    process = train(config(folder), *settings, start_new_session=True)
    wait_for_step(process, tmp_path / "run", 3)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGSTOP)
    os.killpg(process.pid, number)
    time.sleep(0.5)  # enough for the signal to end them, if it does
    survivors = [worker for worker in workers if is_running(worker)]
    process.send_signal(signal.SIGCONT)
    output = finish(process, code)
    assert len(workers) == 2
    assert survivors == workers
    assert "asked to stop: saved after step" in output
    done = max(losses(tmp_path / "run")[0])
    assert (tmp_path / "run" / "checkpoints" / f"step_{done:08d}" / "complete.json").exists()
    assert not [worker for worker in workers if is_running(worker)]


def children_of(process_id: int) -> list[int]:
    """The processes that this one has started and not yet waited for, from /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything, come the state and the parent.
            if int(path.read_text().rpartition(")")[2].split()[1]) == process_id:
                found.append(int(path.parent.name))
    return sorted(found)


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one_process(folder, tmp_path):
    """Batch norm frozen, fp32, batches of 9 so that the shares of the ranks differ; relative tolerance 1e-4."""
    path = config(folder)
    settings = ("train.freeze_batch_norm=true", "train.batch_size=9", "train.epochs=3")
    finish(train(path, *settings, f"run.folder={tmp_path / 'one'}"))
    finish(train(path, *settings, f"run.folder={tmp_path / 'two'}", num_ranks=2))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one[0] == two[0] == list(range(1, 16))
    assert one[1] == pytest.approx(two[1], rel=1e-4)
    assert losses(tmp_path / "one", "eval/pairs/auc")[1] == pytest.approx(
        losses(tmp_path / "two", "eval/pairs/auc")[1], abs=0.02
    )


@pytest.mark.slow
def test_micro_batches_give_the_losses_of_whole_batches(folder, tmp_path):
    path = config(folder)
    settings = ("train.freeze_batch_norm=true", "train.batch_size=10", "train.epochs=3")
    finish(train(path, *settings, f"run.folder={tmp_path / 'whole'}"))
    finish(train(path, *settings, f"run.folder={tmp_path / 'parts'}", "train.micro_batches=3"))
    assert losses(tmp_path / "whole")[1] == pytest.approx(losses(tmp_path / "parts")[1], rel=1e-4)


@pytest.mark.slow
def test_a_student_learns_from_a_teacher_on_one_and_on_two_ranks(folder, tmp_path):
    """Sharing batches of 9 over two ranks changes neither the groups, which span the global batch, nor the losses."""
    teacher_run = tmp_path / "teacher"
    finish(train(config(folder), "train.epochs=4", f"run.folder={teacher_run}"))
    distilled = {
        "teacher": {
            "run": str(teacher_run),
            "check_pairs": str(folder / "pairs.bin"),
            "min_accuracy": 0.3,
            "min_train_rank1": 0.1,
        },
        "distill": [{"loss": {"name": "gkd", "grouping": {"name": "cumulative_mass"}}, "warmup_epochs": 2}],
        "train": {"epochs": 3, "batch_size": 9, "log_every": 1, "freeze_batch_norm": True},
    }
    path = config(folder, **distilled)
    output = finish(train(path, f"run.folder={tmp_path / 'one'}"))
    assert "training rank-1" in output
    finish(train(path, f"run.folder={tmp_path / 'two'}", num_ranks=2))
    for name in ("loss/total", "loss/gkd/primary", "loss/gkd/binary", "stats/gkd/group_size"):
        one, two = losses(tmp_path / "one", name), losses(tmp_path / "two", name)
        assert len(one[1]) == 15
        assert one[1] == pytest.approx(two[1], rel=1e-4, abs=1e-5), name
    weight = losses(tmp_path / "one", "stats/gkd/weight")[1]
    assert weight == pytest.approx([0.0] * 5 + [0.5] * 5 + [1.0] * 5)
    primary = losses(tmp_path / "one", "loss/gkd/primary")[1]
    binary = losses(tmp_path / "one", "loss/gkd/binary")[1]
    weighted = losses(tmp_path / "one", "loss/gkd/weighted")[1]
    assert weighted == pytest.approx(
        [w * (8 * p + b) for w, p, b in zip(weight, primary, binary, strict=True)], rel=1e-4
    )
