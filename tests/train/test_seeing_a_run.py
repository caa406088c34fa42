"""Whole runs, and what they show of themselves."""

from __future__ import annotations

import json

import pytest

from gkd.cli.train import main
from gkd.train.metrics import read_metrics
from tests.train.test_board import board
from tests.train.tiny_run import config, finish, train, write_data


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path)
    return tmp_path


def test_no_run_shows_faces_or_calls_a_server_unless_asked(folder):
    assert main([str(config(folder, train={"epochs": 1, "batch_size": 8, "log_every": 1}))]) == 0
    tags = board(folder / "run").Tags()
    assert tags["images"] == []
    assert not (folder / "run" / "tensorboard" / "embeddings.tsv").exists()
    assert not {path.name for path in (folder / "run").iterdir()} & {"wandb", "wandb_id.txt", "mlflow_id.txt"}


def test_time_and_memory_are_logged_and_shares_add_up_to_no_more_than_all(folder):
    assert main([str(config(folder, train={"epochs": 1, "batch_size": 8, "log_every": 2}))]) == 0
    path = folder / "run" / "metrics.jsonl"
    student, data = (read_metrics(path, f"time/{name}_share")[1] for name in ("student", "data"))
    assert len(student) == 3
    assert all(one > 0 and one + other <= 1 for one, other in zip(student, data, strict=True))
    assert all(value > 0.01 for value in read_metrics(path, "memory/resident_gib")[1])


@pytest.mark.slow
def test_two_ranks_show_the_samples_of_the_first_and_embed_together(folder):
    log = {"histograms_every": 2, "images": True, "images_every": 3, "num_images": 2, "projector": 10}
    path = config(folder, log=log, train={"epochs": 1, "batch_size": 8, "log_every": 1})
    finish(train(path, num_ranks=2))
    found = board(folder / "run")
    points = found.Histograms("samples/target_cosine")
    assert [(point.step, point.histogram_value.num) for point in points] == [(2, 4), (4, 4), (6, 4)]
    assert [point.step for point in found.Images("images/hardest")] == [3, 6]
    assert len((folder / "run" / "tensorboard" / "embeddings.tsv").read_text().splitlines()) == 10


def test_showing_more_changes_neither_the_result_nor_the_run(folder):
    """The same losses with everything on as with everything off; and what is shown may change when a run goes on."""
    everything = {"histograms_every": 1, "images": True, "images_every": 1, "num_images": 2, "projector": 5}
    losses = []
    for name, log in (("plain", {"histograms_every": None}), ("all", everything)):
        path = config(folder, log=log, train={"epochs": 1, "batch_size": 8, "log_every": 1, "micro_batches": 2})
        assert main([str(path), f"run.folder={folder / name}"]) == 0
        losses.append(read_metrics(folder / name / "metrics.jsonl", "loss/total")[1])
    assert losses[0] == losses[1]
    path = config(folder, log=everything, train={"epochs": 1, "batch_size": 8, "log_every": 1, "micro_batches": 2})
    assert main([str(path), f"run.folder={folder / 'plain'}"]) == 0
    starts = json.loads((folder / "plain" / "run.json").read_text())
    assert len(starts) == 2
    assert {"git_commit", "git_branch", "git_diff", "num_untracked"} <= set(starts[1])
