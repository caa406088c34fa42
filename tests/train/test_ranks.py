"""Stopping on two ranks: the request reaches both, which save after the same step."""

from __future__ import annotations

import signal

import pytest

from tests.train.test_run import losses, wait_for_step
from tests.train.tiny_run import config, finish, train, write_data


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_run_goes_on_with_one_process(tmp_path):
    write_data(tmp_path)
    # torchrun signals the whole group of each rank; the loading processes must outlive it until the save is done.
    path = config(
        tmp_path,
        train={"epochs": 200, "batch_size": 8, "log_every": 1, "freeze_batch_norm": True},
        data={"workers": 1},
    )
    process = train(path, "evaluation.sets=[]", num_ranks=2)
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "asked to stop: saved after step" in output
    done = max(losses(tmp_path / "run")[0])
    checkpoint = tmp_path / "run" / "checkpoints" / f"step_{done:08d}"
    assert (checkpoint / "complete.json").exists()
    last = f"train.resume={checkpoint}"
    output = finish(
        train(path, "evaluation.sets=[]", last, f"train.epochs={done // 6 + 1}", f"run.folder={tmp_path / 'on'}")
    )
    assert "resuming with num_ranks=1, which was 2" in output
    assert losses(tmp_path / "on")[0][0] == done + 1
