"""The profile tool as a user calls it, on a run of seconds."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gkd.cli.profile import main
from tests.cli.pair_files import logging_as_before  # noqa: F401
from tests.train.tiny_run import config, write_data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return config(tmp_path)


def test_every_moment_of_a_step_is_accounted_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--steps", "4", "--warmup", "1"]) == 0
    folder = run.parent / "run-profile"
    profile = json.loads((folder / "profile.json").read_text())
    (rank,) = profile["ranks"]
    assert profile["is_complete"]
    assert sum(rank["seconds"].values()) == pytest.approx(rank["step_seconds"], rel=0.1)
    both = rank["seconds"]["student_forward"], rank["seconds"]["student_backward"]
    assert min(both) > 0
    assert sum(both) > 0.3 * rank["step_seconds"]
    assert min(rank["seconds"].values()) >= 0
    assert len(rank["operators"]) == 10
    shown = capsys.readouterr().out
    for phase in ("data wait", "student, forward", "student, backward", "head and margin", "optimiser", "own overhead"):
        assert phase in shown
    assert "bound by: student" in shown
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    assert len(trace["traceEvents"]) > 100
    assert not (run.parent / "run").exists()
    assert not list(folder.glob("checkpoints/step_*"))


def test_a_profile_may_be_made_again_but_not_over_other_things(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--steps", "1", "--warmup", "1"]
    assert main([str(run), *few]) == 0
    assert main([str(run), *few]) == 0
    other = run.parent / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    assert main([str(run), *few, "--out", str(other)]) == 2
    assert "holds other things (thesis.txt)" in capsys.readouterr().err
    assert main([str(run), *few, "--out", str(run.parent / "run")]) == 2
    assert "is the run's own folder" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--steps", "0"], ["--warmup", "-1"], ["train.batchsize=3"]])
def test_mistakes_are_refused(run: Path, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    assert main([str(run), *options]) == 2
    shown = capsys.readouterr().err
    assert any(name in shown for name in ("steps", "warmup", "batchsize"))
    assert not (run.parent / "run-profile").exists()
