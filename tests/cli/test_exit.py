"""How a tool's process ends under torchrun: without teardown, yet with its exit handlers run and its output written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gkd.cli import run_tool

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import atexit, sys
from gkd.cli import leave

class Late:
    def __del__(self):
        sys.stderr.write("torn down\\n")

late = Late()
atexit.register(lambda: sys.stdout.write("handler\\n"))
sys.stdout.write("work, ")
leave(int(sys.argv[1]))
"""


def end(code: int, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**{key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}, **environment}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(code)], env=given, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_rank_ends_without_teardown_but_loses_nothing() -> None:
    result = end(2, WORLD_SIZE="2")
    assert (result.returncode, result.stdout, result.stderr) == (2, "work, handler\n", "")


def test_a_process_on_its_own_ends_as_usual() -> None:
    result = end(0)
    assert (result.returncode, result.stdout, result.stderr) == (0, "work, handler\n", "torn down\n")


def test_a_disk_that_cannot_be_written_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise OSError(28, "No space left on device", "out.rec")

    assert run_tool(fail) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'out.rec'\n"
