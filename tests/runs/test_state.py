"""Whether a run is finished, running or stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gkd.core.files import locked_folder
from gkd.runs import state
from gkd.runs.metrics_file import read_metrics_file
from gkd.runs.state import State, is_file_locked, judge
from tests.runs.made_runs import FIRST_SECONDS, line

CONFIG = {"train.epochs": 2}
LATER = FIRST_SECONDS + 1e6


def judged(tmp_path: Path, *lines: dict[str, Any], config: dict[str, Any] = CONFIG, now: float = LATER) -> State:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return judge(tmp_path, config, read_metrics_file(path), now)


def test_run_with_all_its_epochs_is_finished(tmp_path: Path) -> None:
    found = judged(tmp_path, line(300, epoch=1.0), line(600, epoch=2.0))
    assert found == State("finished", 600, 600)
    assert (str(found), found.progress) == ("finished", "600")


def test_evaluation_after_the_last_step_changes_nothing(tmp_path: Path) -> None:
    assert judged(tmp_path, line(600, epoch=2.0), line(600, eval__lfw__accuracy=0.9)).kind == "finished"


def test_run_that_has_gone_silent_is_stopped(tmp_path: Path) -> None:
    found = judged(tmp_path, line(1300, epoch=1.3))
    assert found == State("stopped", 1300, 2000)
    assert (str(found), found.progress) == ("stopped at 1,300", "1,300/2,000")


@pytest.mark.parametrize(("silent_seconds", "kind"), [(10, "running?"), (119, "running?"), (121, "stopped")])
def test_run_that_logged_a_moment_ago_may_run(tmp_path: Path, silent_seconds: float, kind: str) -> None:
    now = FIRST_SECONDS + 20 + silent_seconds
    assert judged(tmp_path, line(10, epoch=0.1), line(20, epoch=0.2), now=now).kind == kind


@pytest.mark.parametrize(("silent_seconds", "kind"), [(4999, "running?"), (5001, "stopped")])
def test_run_that_logs_seldom_is_given_five_intervals(tmp_path: Path, silent_seconds: float, kind: str) -> None:
    lines = [line(step, epoch=step / 100_000) for step in (1000, 2000, 3000)]
    assert judged(tmp_path, *lines, now=FIRST_SECONDS + 3000 + silent_seconds).kind == kind


def test_folder_held_by_a_process_is_running(tmp_path: Path) -> None:
    lines = [line(300, epoch=1.0), line(600, epoch=2.0)]
    with locked_folder(tmp_path, "run.folder", "test"):
        if not is_file_locked(tmp_path / ".lock"):
            pytest.skip("this machine does not tell which files are locked")
        assert judged(tmp_path, *lines).kind == "running"
    assert judged(tmp_path, *lines).kind == "finished"


def test_lock_is_looked_up_by_device_and_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    place = f"{state.os.major(lock.stat().st_dev):02x}:{state.os.minor(lock.stat().st_dev):02x}:{lock.stat().st_ino}"
    table = tmp_path / "locks"
    monkeypatch.setattr(state, "LOCKS", table)
    for text, is_held in (
        (f"1: FLOCK  ADVISORY  WRITE 12 {place} 0 EOF\n", True),
        (f"1: FLOCK  ADVISORY  WRITE 12 {place}0 0 EOF\n", False),
        (f"1: POSIX  ADVISORY  WRITE 12 {place} 0 EOF\n", False),
        ("", False),
    ):
        table.write_text(text)
        assert is_file_locked(lock) is is_held
    table.unlink()
    assert not is_file_locked(lock)


def test_nothing_logged_is_not_started(tmp_path: Path) -> None:
    assert judged(tmp_path) == State("not started", 0, None)


@pytest.mark.parametrize("epochs", [None, "2", True, -1, 0, float("nan"), float("inf"), 10**400])
def test_length_that_cannot_be_told_finishes_no_run(tmp_path: Path, epochs: Any) -> None:
    found = judged(tmp_path, line(600, epoch=2.0), config={"train.epochs": epochs})
    assert found == State("stopped", 600, None)
    assert found.progress == "600"


@pytest.mark.parametrize("epoch", [0.0, -1.0, float("nan"), float("inf"), 1e-300])
def test_damaged_epoch_finishes_no_run(tmp_path: Path, epoch: float) -> None:
    assert judged(tmp_path, line(600, epoch=epoch)) == State("stopped", 600, None)
