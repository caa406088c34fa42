"""A run that goes on with another number of ranks, mid-epoch: the same batches and the same losses."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from gkd.data import RecordFile
from gkd.data.batches import BatchPlan
from gkd.data.sampling import Uniform
from gkd.train.metrics import read_metrics
from tests.train.run_state import newest_step
from tests.train.tiny_run import ROOT, config, finish, train, write_data

NUM_STEPS = 30


@pytest.mark.slow
def test_a_run_moves_from_two_ranks_to_one_to_three_and_back(tmp_path):
    """Batch norm frozen: with live statistics each rank would see those of its own share."""
    write_data(tmp_path)
    # Batches of 9: even shares for one and three ranks, 5 and 4 images for two.
    path = config(
        tmp_path,
        train={"epochs": 6, "batch_size": 9, "log_every": 1, "freeze_batch_norm": True},
        evaluation={"sets": []},
    )
    finish(train(path, f"run.folder={tmp_path / 'whole'}"))
    finished = subprocess.run(
        [sys.executable, "-m", "tests.train.elastic", str(tmp_path), "2,1,3,2", "6,13,21"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr

    text = (tmp_path / "chain.log").read_text()
    starts = re.findall(r"(\d+) process\(es\) on cpu, starting at step (\d+)", text)
    assert [int(number) for number, _ in starts] == [2, 1, 3, 2]
    resumed = [int(step) for _, step in starts]
    assert resumed[0] == 0
    assert all(asked <= step < asked + 7 for asked, step in zip((6, 13, 21), resumed[1:], strict=True))
    assert any(step % 5 for step in resumed)  # in the middle of an epoch, which has 5 steps
    assert "num_ranks=1, which was 2" in text

    assert newest_step(tmp_path / "chain") == NUM_STEPS
    for name in ("loss/total", "optim/gradient_norm", "optim/lr"):
        whole = read_metrics(tmp_path / "whole" / "metrics.jsonl", name)
        chain = read_metrics(tmp_path / "chain" / "metrics.jsonl", name)
        assert whole[0] == chain[0] == list(range(1, NUM_STEPS + 1))
        assert chain[1] == pytest.approx(whole[1], rel=1e-3), name


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_the_global_batches_are_the_same_images_on_any_number_of_ranks(tmp_path, num_micro_batches):
    """Whatever the number of ranks before and after any step, so a chain sees what an undisturbed run sees."""
    write_data(tmp_path)
    order = Uniform().order(RecordFile(tmp_path / "train.rec"), seed=5, batch_size=9)
    alone = global_batches(order, 1, 1)
    assert [len(batch) for batch in alone] == [9] * 12
    assert alone[0] != alone[5]  # another epoch, another order
    for num_ranks in (1, 2, 3, 4):
        assert global_batches(order, num_ranks, num_micro_batches) == alone
        assert global_batches(order, num_ranks, num_micro_batches, start_step=7) == alone[7:]


def global_batches(order, num_ranks: int, num_micro_batches: int, start_step: int = 0) -> list[list[int]]:
    """The sample ids of steps `start_step` to 11, put together from every rank's tasks, micro-batch by micro-batch."""
    plans = [
        BatchPlan(order, batch_size=9, num_micro_batches=num_micro_batches, rank=rank, world_size=num_ranks)
        for rank in range(num_ranks)
    ]
    batches: list[list[int]] = [[] for _ in range(12)]
    for tasks in zip(*(plan.tasks(start_step, 12) for plan in plans), strict=True):
        assert len({(task.step, task.micro_batch) for task in tasks}) == 1
        batches[tasks[0].step] += [int(sample_id) for task in tasks for sample_id in task.sample_ids]
    return batches[start_step:]
