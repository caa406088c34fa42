"""Whole runs with Grouped KD over class-sharded heads: the number of ranks changes nothing but speed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gkd.models import load_head
from gkd.train.metrics import read_metrics
from tests.train.run_state import newest_step
from tests.train.tiny_run import ROOT, config, finish, train, write_data

NUM_STEPS = 50
NAMES = ("loss/total", "loss/classification", "loss/gkd/primary", "loss/gkd/binary", "stats/gkd/group_size",
         "stats/accuracy", "optim/gradient_norm")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and `run.yaml`: Grouped KD, batch norm frozen, 5 steps of 9 images an epoch, clipped."""
    path = tmp_path_factory.mktemp("sharded")
    write_data(path)
    finish(train(config(path), "train.epochs=4", f"run.folder={path / 'teacher'}"))
    config(
        path,
        train={"epochs": 10, "batch_size": 9, "log_every": 1, "freeze_batch_norm": True, "save_every": 7},
        # Gentle, so that rounding does not grow: the curves are then equal to 1e-6.
        optim={"lr": 0.002, "clip_norm": 2.0},
        evaluation={"sets": []},
        teacher={
            "run": str(path / "teacher"),
            "check_pairs": str(path / "pairs.bin"),
            "min_accuracy": 0.2,
            "min_train_rank1": 0.1,
        },
        distill=[{"loss": {"name": "gkd", "grouping": {"name": "top_k", "k": 3}}, "weight": 0.1, "warmup_epochs": 2}],
    )
    return path


def run(folder: Path, name: str, ranks: str, stops: str, *overrides: str) -> Path:
    """Train on `ranks`, changing after the steps `stops`; see `tests.train.elastic`."""
    command = [sys.executable, "-m", "tests.train.elastic", str(folder), ranks, stops]
    finished = subprocess.run(
        [*command, f"run.folder={folder / name}", *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert newest_step(folder / name) == NUM_STEPS
    return folder / name


@pytest.fixture(scope="module")
def softmax(folder: Path) -> Path:
    return run(folder, "softmax", "1", "-")


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Path:
    return run(folder, "sharded1", "1", "-", "head.name=sharded")


def require_equal_curves(one: Path, other: Path, num_steps: int = NUM_STEPS) -> None:
    """Equal to rounding, which a network with kinks lets grow; in the gradient's norm it shows at once."""
    for name in NAMES:
        steps, values = read_metrics(one / "metrics.jsonl", name)
        assert len(steps) == NUM_STEPS
        other_steps, other_values = read_metrics(other / "metrics.jsonl", name)
        assert other_steps == steps
        num_compared = min(num_steps, 30) if name == "optim/gradient_norm" else num_steps
        assert other_values[:num_compared] == pytest.approx(values[:num_compared], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_one_and_two_ranks_have_one_curve_and_that_of_the_softmax_head(
    folder: Path, softmax: Path, sharded: Path
) -> None:
    require_equal_curves(softmax, sharded, 20)
    both = run(folder, "sharded2", "2", "-", "head.name=sharded")
    require_equal_curves(sharded, both)
    weights, meta = load_head(both / "weights/head.pt")
    expected, expected_meta = load_head(sharded / "weights/head.pt")
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    assert meta == expected_meta
    # Something was learnt, and something was clipped.
    losses = read_metrics(softmax / "metrics.jsonl", "loss/classification")[1]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert max(read_metrics(softmax / "metrics.jsonl", "optim/gradient_norm")[1]) > 2.0


@pytest.mark.slow
def test_a_sharded_run_moves_from_two_ranks_to_one_to_three_and_back(folder: Path, sharded: Path) -> None:
    chain = run(folder, "chain", "2,1,3,2", "6,16,30", "head.name=sharded")
    log = (folder / "chain.log").read_text()
    starts = [int(number) for number in re.findall(r"(\d+) process\(es\) on cpu, starting", log)]
    assert starts == [2, 1, 3, 2]
    require_equal_curves(sharded, chain)


@pytest.mark.slow
def test_partial_fc_draws_the_same_classes_on_any_ranks(folder: Path, softmax: Path) -> None:
    overrides = ("head.name=partial_fc", "head.sample_rate=0.5")
    alone = run(folder, "partial1", "1", "-", *overrides)
    both = run(folder, "partial2", "2,3,1", "9,20", *overrides)
    require_equal_curves(alone, both)
    left_out = read_metrics(alone / "metrics.jsonl", "stats/gkd/secondary_size")[1]
    assert set(read_metrics(softmax / "metrics.jsonl", "stats/gkd/secondary_size")[1]) == {3.0}
    assert len(set(left_out)) > 1
    assert max(left_out) <= 3.0
    assert "formed over the classes that partial_fc draws" in (folder / "partial1.log").read_text()


@pytest.mark.slow
def test_a_run_may_change_its_head_when_it_is_told_to(folder: Path, softmax: Path) -> None:
    """The checkpoint of a softmax head is that of a sharded one."""
    checkpoint = softmax / "checkpoints/step_00000050"
    overrides = [f"run.folder={folder / 'changed'}", "head.name=sharded", "train.epochs=11"]
    output = finish(train(folder / "run.yaml", *overrides, f"train.resume={checkpoint}", num_ranks=2))
    assert "starting at step 50" in output
    assert newest_step(folder / "changed") == 55
