"""`tools/train.py` with averaged weights, fine-tuning, frozen parts, and steps that are not finite."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gkd.cli.replay import main as replay
from gkd.cli.train import Run, _explained, main
from gkd.core.errors import CheckpointError, GkdError
from gkd.data import PairSet
from gkd.models import load_head
from gkd.train.checkpoint import Checkpoints
from gkd.train.metrics import read_metrics
from tests.cli.test_train import refused
from tests.train.test_run import children_of, wait_for_step
from tests.train.tiny_run import config, train, write_data

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A finished run of two epochs."""
    assert main([str(config(folder)), f"run.folder={folder / 'trained'}"]) == 0
    return folder / "trained"


def student(run: Path) -> State:
    loaded: State = torch.load(run / "weights" / "student.pt", weights_only=True)["state_dict"]
    return loaded


def different(one: State, other: State) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_the_average_is_exported_and_a_resumed_run_has_the_same(folder: Path, trained: Path, tmp_path: Path) -> None:
    settings = ["train.ema_decay=0.9", "train.save_every=5", "train.keep_last=9"]
    run = tmp_path / "whole"
    assert main([str(config(folder)), *settings, f"run.folder={run}"]) == 0
    assert different(student(run), student(trained))
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    for step in (10, 12):
        (resumed / "checkpoints" / f"step_{step:08d}" / "complete.json").unlink()
    shutil.rmtree(resumed / "weights")
    assert main([str(config(folder)), *settings, f"run.folder={resumed}"]) == 0
    assert different(student(resumed), student(run)) == []
    assert torch.equal(load_head(resumed / "weights/head.pt")[0], load_head(run / "weights/head.pt")[0])


def test_checkpoints_of_chosen_steps_stay(folder: Path, tmp_path: Path) -> None:
    assert main([str(config(folder, evaluation={"sets": []})), "train.save_every=2", "train.keep_every=4",
                 "train.keep_last=1", f"run.folder={tmp_path}"]) == 0  # fmt: skip
    assert sorted(path.name[-2:] for path in (tmp_path / "checkpoints").iterdir()) == ["04", "08", "12"]


def test_lost_weights_of_a_finished_run_are_written_again(folder: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "weights")
    assert main([str(config(folder)), f"run.folder={run}"]) == 0
    assert different(student(run), student(trained)) == []
    assert (run / "weights" / "student.safetensors").exists()


def test_fine_tuning_starts_from_a_run_and_keeps_what_is_frozen(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"start.weights={trained}", "optim.groups=[{match: 'backbone.*', frozen: true}]"]
    assert main([str(config(folder)), *settings, "train.epochs=1", f"run.folder={tmp_path / 'run'}"]) == 0
    log = capsys.readouterr().err
    assert "starting from other weights: backbone: " in log
    assert "starting from other weights: head: " in log
    assert different(student(tmp_path / "run"), student(trained)) == []
    head, before = (load_head(run / "weights/head.pt")[0] for run in (tmp_path / "run", trained))
    assert not torch.equal(head, before)


def test_a_pattern_that_matches_nothing_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, config(folder), "optim.groups=[{match: 'backbon.*'}]", f"run.folder={tmp_path / 'run'}")
    assert "optim.groups: 'backbon.*' matches no parameter; near it are backbone.*" in message


def test_synchronised_batch_norm_needs_a_gpu(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    message = refused(capsys, config(folder), "train.sync_batch_norm=true", f"run.folder={tmp_path / 'run'}")
    assert "train.sync_batch_norm: needs CUDA" in message


def test_a_bad_step_is_named_kept_and_replayed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    wild = ["optim.lr=1e30", "schedule.warmup_epochs=0", "optim.clip_norm=null", "train.save_every=1"]
    message = refused(capsys, config(folder, evaluation={"sets": []}), *wild, f"run.folder={run}")
    assert "is not finite; nothing was updated" in message
    assert "go on with that from a checkpoint before it by train.resume=PATH" in message
    assert "tools/replay.py" in message
    (dump,) = (run / "nonfinite").iterdir()
    assert replay([str(run), str(dump)]) == 1
    output = capsys.readouterr().out
    assert "not finite again" in output
    assert str(folder / "train.rec") in output


def test_bad_steps_may_be_skipped_but_not_for_ever(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    wild = ["optim.lr=1e30", "schedule.warmup_epochs=0", "optim.clip_norm=null", "train.on_non_finite=skip"]
    message = refused(
        capsys, config(folder, evaluation={"sets": []}), *wild, "train.max_skipped=3", f"run.folder={run}"
    )
    assert "(4 such steps in a row)" in message
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    assert max(read_metrics(run / "metrics.jsonl", "fault/num_skipped")[1]) == 3.0


def test_no_checkpoint_is_made_while_steps_are_skipped(folder: Path, tmp_path: Path) -> None:
    wild = ["optim.lr=1e30", "schedule.warmup_epochs=0", "optim.clip_norm=null", "train.on_non_finite=skip"]
    settings = [
        *wild,
        "train.max_skipped=3",
        "train.save_every=1",
        "train.keep_last=9",
        f"run.folder={tmp_path / 'run'}",
    ]
    assert main([str(config(folder, evaluation={"sets": []})), *settings]) == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001"]


def test_a_run_goes_on_with_other_settings_where_its_checkpoint_is_named(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    settings = [str(config(folder)), "optim.lr=0.01", "train.epochs=3", f"run.folder={run}"]
    checkpoint = run / "checkpoints" / "step_00000012"
    message = refused(capsys, *settings)
    assert f"or go on from it with the new ones by train.resume={checkpoint}" in message
    assert main([*settings, "--dry-run"]) == 2
    assert "belongs to a run with other settings (optim.lr: 0.05 there, 0.01 now" in capsys.readouterr().out
    assert main([*settings, f"train.resume={checkpoint}", "--dry-run"]) == 0
    assert f"resume          from {checkpoint}, step 12" in capsys.readouterr().out
    assert main([*settings, f"train.resume={checkpoint}"]) == 0
    sampling = "data.sampling={name: balanced, images_per_identity: 2}"
    message = refused(capsys, *settings, sampling, f"train.resume={checkpoint}")
    assert "data.sampling" in message
    assert "or go on" not in message


def test_a_set_of_one_class_is_refused_before_the_first_step(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = PairSet.load(folder / "pairs.bin")
    one_class = tmp_path / "same.bin"
    PairSet(pairs.images[:4], [True, True]).save(one_class)
    sets = f"evaluation.sets=[{one_class}]"
    expected = f"evaluation.sets: {one_class} has 2 pairs of one person and 0 of two"
    assert expected in refused(capsys, config(folder), sets, f"run.folder={tmp_path / 'run'}")
    assert main([str(config(folder)), sets, f"run.folder={tmp_path / 'run'}", "--dry-run"]) == 2
    assert expected in capsys.readouterr().out


def test_a_bad_image_of_a_set_does_not_cost_the_steps_done(folder: Path, tmp_path: Path) -> None:
    pairs = PairSet.load(folder / "pairs.bin")
    images = list(pairs.images)
    images[5] = images[5][:-40]
    PairSet(images, pairs.is_same).save(tmp_path / "cut.bin")
    sets = f"evaluation.sets=[{tmp_path / 'cut.bin'}]"
    assert main([str(config(folder)), sets, f"run.folder={tmp_path / 'run'}"]) == 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000006"]


@pytest.mark.parametrize("num_failures", [1, 2])
def test_a_last_save_that_fails_is_tried_once_more_and_then_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], num_failures: int
) -> None:
    save, finish, failures = Checkpoints.save, Run._finish_saving, []

    def fail_at_the_end(self: Checkpoints, step: int, *arguments: Any, **settings: Any) -> Path:
        if step == 12 and len(failures) < num_failures:
            failures.append(step)
            raise CheckpointError("no space left")
        return save(self, step, *arguments, **settings)

    def finish_late(self: Run, step: int) -> None:
        time.sleep(0.5)  # by now the save has failed already
        finish(self, step)

    monkeypatch.setattr(Checkpoints, "save", fail_at_the_end)
    monkeypatch.setattr(Run, "_finish_saving", finish_late)
    code = main([str(config(folder, evaluation={"sets": []})), f"run.folder={tmp_path}", "train.save_every=6"])
    assert failures == [12] * num_failures
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["step_00000006", "step_00000012"][: 3 - num_failures]
    assert code == (0 if num_failures == 1 else 2)
    message = "training is done up to step 12, but the save of step 12 failed: no space left; make room and run again"
    assert (message in capsys.readouterr().err) == (num_failures == 2)


def test_only_errors_of_communication_are_laid_on_other_ranks() -> None:
    class Watch:
        def explain(self, error: BaseException) -> str:
            return f"rank 1 hangs: {error}"

    watch: Any = Watch()
    for own in (RuntimeError("shapes do not match"), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(RuntimeError) as caught, _explained(watch):
            raise own
        assert caught.value is own
    for foreign in (
        RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed"),
        torch.distributed.DistBackendError("NCCL"),
    ):
        with pytest.raises(GkdError, match="rank 1 hangs: "), _explained(watch):
            raise foreign


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(folder: Path, tmp_path: Path) -> None:
    settings = ["train.epochs=3000", "train.timeout_minutes=0.15", "train.save_every=100", f"run.folder={tmp_path}"]
    with train(config(folder, evaluation={"sets": []}), *settings, num_ranks=2) as process:
        wait_for_step(process, tmp_path, 20)
        stopped = children_of(process.pid)[-1]
        os.kill(stopped, signal.SIGSTOP)
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        message = next(line for line in lines if "waiting for the other ranks failed" in line)
        os.kill(stopped, signal.SIGCONT)  # torchrun would wait half a minute for it
        rest = "".join(lines)
    assert process.returncode == 1, rest
    assert f"rank 1 (host {socket.gethostname()}, pid {stopped})" in message
    assert "its process is stopped by a signal" in message
