"""The short form of `scripts/chaos.sh`, and that its own judgement can fail."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
import torch

from tests.train.kills import MOMENTS, SIGNALS, TARGETS, children_of, draw_kill, living_in
from tests.train.run_state import differences, last_logged_step, newest_step
from tests.train.tiny_run import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("head", "num_kills"), [("softmax", 6), ("sharded", 4)])
def test_a_run_killed_some_times_is_equal_in_every_bit_to_one_left_in_peace(tmp_path, head, num_kills):
    """In a process of its own, for its ranks are forks of it: pytest has threads by now."""
    command = [sys.executable, "-m", "tests.train.chaos", "--kills", str(num_kills), "--seed", "20", "--head", head]
    finished = subprocess.run(
        [*command, "--report", str(tmp_path / "report.json")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["problems"] == []
    assert len(report["strikes"]) == num_kills
    assert report["num_rounds"] >= 1
    # It went on from a checkpoint, and not only from the start.
    assert report["num_resumed"] >= 1
    assert list(tmp_path.glob("gkd-chaos-*")) == []


def test_kills_are_drawn_by_their_shares_and_repeat_with_the_seed():
    drawn = [draw_kill(random.Random(seed), num_ranks=3) for seed in range(2000)]
    assert drawn == [draw_kill(random.Random(seed), num_ranks=3) for seed in range(2000)]
    for name, shares in (("moment", MOMENTS), ("signals", SIGNALS), ("target", TARGETS)):
        counts = Counter(getattr(kill, name) for kill in drawn)
        assert {key: counts[key] / len(drawn) for key in shares} == pytest.approx(shares, abs=0.04)
    assert {kill.rank for kill in drawn} == {0, 1, 2}


def test_a_kill_reaches_its_target_and_nobody_else():
    processes = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(3)]
    launcher, *ranks = (process.pid for process in processes)
    try:
        assert set(children_of(os.getpid())) >= {launcher, *ranks}
        kill = draw_kill(random.Random(1), 2)
        type(kill)("step", 1, 0.0, "SIGTERM, SIGKILL", 0.0, "one rank", 1).strike(launcher, ranks)
        assert processes[2].wait(timeout=10) == -15
        assert living_in({launcher, *ranks}) == sorted([launcher, ranks[0]])
        type(kill)("step", 1, 0.0, "SIGKILL", 0.0, "launcher and ranks", 0).strike(launcher, ranks)
        assert [process.wait(timeout=10) for process in processes[:2]] == [-9, -9]
        assert living_in({launcher, *ranks}) == []
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_newest_whole_checkpoint_is_judged_by_its_files(tmp_path):
    assert newest_step(tmp_path) == 0
    for step in (3, 6, 9):
        write_checkpoint(tmp_path, step)
    assert newest_step(tmp_path) == 9
    (tmp_path / "checkpoints" / "step_00000009" / "tensors").write_bytes(b"ANOTHER CONTENT")
    assert newest_step(tmp_path) == 6
    (tmp_path / "checkpoints" / "step_00000006" / "complete.json").unlink()
    assert newest_step(tmp_path) == 3
    (tmp_path / "checkpoints" / "step_00000003").rename(tmp_path / "checkpoints" / ".replaced-step_00000003")
    assert newest_step(tmp_path) == 3
    (tmp_path / "checkpoints" / ".replaced-step_00000003").rename(tmp_path / "checkpoints" / ".writing-step_00000003")
    assert newest_step(tmp_path) == 0


def write_checkpoint(run, step):
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "tensors").write_bytes(b"fifteen bytes..")
    digest = hashlib.sha256(b"fifteen bytes..").hexdigest()
    record = {"step": step, "score": None, "files": {"tensors": {"size": 15, "sha256": digest}}}
    (folder / "complete.json").write_text(json.dumps(record))


def test_the_last_logged_step_passes_over_a_line_being_written(tmp_path):
    assert last_logged_step(tmp_path) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert last_logged_step(tmp_path) == 2


def test_one_other_bit_or_figure_is_a_difference(tmp_path, monkeypatch):
    runs = {name: tmp_path / name for name in ("a", "b")}
    tensors = {name: {"w": torch.tensor([0.0, float("nan")]), "n": torch.tensor(3)} for name in runs}
    for folder in runs.values():
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(
            '{"step": 1, "time": 5, "loss/total": 0.5}\n{"step": 2, "loss/total": 1}\n'
        )
    monkeypatch.setattr("tests.train.run_state.final_tensors", lambda run, scratch: tensors[run.name])

    def found():
        return differences(runs["a"], runs["b"], tmp_path / "scratch")

    assert found() == []
    tensors["b"]["w"] = torch.tensor([-0.0, float("nan")])
    assert found() == ["w"]
    tensors["b"] = {"w": tensors["a"]["w"].double(), "n": tensors["a"]["n"], "more": torch.tensor(1)}
    assert found() == ["more", "w"]
    tensors["b"] = tensors["a"]
    (runs["b"] / "metrics.jsonl").write_text('{"step": 1, "time": 6, "loss/total": 0.25}\n')
    assert found() == ["2 lines of metrics.jsonl against 1", "the figures of step 1"]
