"""Commands of a study: several at a time, stopped together, their last words told."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from gkd.core.errors import DataError
from gkd.study.jobs import STOPPED, ProcessLauncher, child_environment, last_error, run_all
from tests.study.tiny_study import FakeLaunch


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_command_adds_its_output_to_the_log_and_gives_its_exit_code(tmp_path):
    launch, log = ProcessLauncher(), tmp_path / "run" / "train.log"
    for code in (0, 3):
        command = python(f"import sys; print('out'); print('error: bad', file=sys.stderr); sys.exit({code})")
        assert launch(command, log, os.environ) == code
    assert log.read_text().count("out\n") == 2
    assert last_error(log, 0) == "error: bad"


def test_an_interrupt_reaches_running_commands_and_starts_no_more(tmp_path):
    launch, log = ProcessLauncher(), tmp_path / "log"
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: (print('saved', flush=True), sys.exit(130)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    stop = SimpleNamespace(signal_number=0)
    codes = []

    def ask_to_stop():
        while "ready" not in (log.read_text() if log.exists() else ""):
            time.sleep(0.02)
        stop.signal_number = signal.SIGINT

    asking = threading.Thread(target=ask_to_stop)
    asking.start()
    tasks = [lambda: codes.append(launch(python(code), log, os.environ)) for _ in range(3)]
    run_all(tasks, 1, launch, stop)
    asking.join()
    assert codes == [130]
    assert log.read_text() == "ready\nsaved\n"
    assert launch(python("print('late')"), log, os.environ) == STOPPED


def test_no_more_commands_run_than_jobs_and_an_error_comes_out_at_the_end():
    running, most, done = [], [], []

    def task(number):
        running.append(number)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(number)
        done.append(number)
        if number == 1:
            raise DataError("one went wrong")

    with pytest.raises(DataError, match="one went wrong"):
        run_all([lambda n=n: task(n) for n in range(5)], 2, FakeLaunch(), SimpleNamespace(signal_number=0))
    assert sorted(done) == list(range(5))
    assert max(most) == 2


def test_threads_are_shared_out_unless_the_user_says_how_many(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [child_environment(jobs)["OMP_NUM_THREADS"] for jobs in (1, 3, 16)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert child_environment(2)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("error: old\nstep 1\n", "step 1"),
        ("error: old\nerror: new\nlast words\n", "error: new"),
        ("error: old\nTraceback\nValueError: x\n", "ValueError: x"),
        ("error: old\n", "no output"),
    ],
)
def test_the_last_error_is_that_of_the_last_start(tmp_path, output, expected):
    log = tmp_path / "log"
    log.write_text(output)
    assert last_error(log, len("error: old\n")) == expected
    assert last_error(tmp_path / "none", 0) == "no output"
