"""`scripts/setup.sh` with a stand-in for Python that makes an empty environment and counts what it is asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

STAND_IN = """#!/usr/bin/env bash
echo "$@" >>"$LOG"
case "$*" in
    --version) echo "Python 3.11.0" ;;
    "-c "*) exit "${TOO_OLD:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip "*) exit "${PIP_FAILS:-0}" ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return tmp_path


def set_up(place: Path, **environment: str) -> tuple[int, str, int]:
    """Exit code, output, and how many times something was installed."""
    log = place / "log"
    log.write_text("")
    settings = {"PYTHON": str(place / "python"), "GKD_VENV": str(place / "venv"), "LOG": str(log), **environment}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "setup.sh")],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr, log.read_text().count("-m pip install")


def test_makes_the_environment_once(place: Path) -> None:
    assert set_up(place)[::2] == (0, 1)
    assert (place / "venv" / ".gkd-ready").exists()
    code, output, installs = set_up(place)
    assert (code, output, installs) == (0, "", 0)


def test_an_interrupted_set_up_is_made_anew(place: Path) -> None:
    assert set_up(place, PIP_FAILS="1")[0] != 0
    assert (place / "venv" / ".gkd-incomplete").exists()
    (place / "venv" / "left-over").write_text("")
    code, output, installs = set_up(place)
    assert (code, installs) == (0, 1)
    assert "half-made; making it anew" in output
    assert not (place / "venv" / "left-over").exists()
    assert not (place / "venv" / ".gkd-incomplete").exists()


def test_other_requirements_are_installed_into_it(place: Path) -> None:
    set_up(place)
    (place / "venv" / ".gkd-ready").write_text("Python 3.11.0 of other requirements")
    assert set_up(place)[::2] == (0, 1)


def test_a_folder_of_someone_else_is_left_alone(place: Path) -> None:
    (place / "venv").mkdir()
    (place / "venv" / "precious").write_text("mine")
    code, output, installs = set_up(place)
    assert (code, installs) == (1, 0)
    assert "was not made by this script; remove it, or name another folder with GKD_VENV" in output
    assert (place / "venv" / "precious").read_text() == "mine"


def test_an_old_python_is_refused(place: Path) -> None:
    code, output, installs = set_up(place, TOO_OLD="1")
    assert (code, installs) == (1, 0)
    assert "is too old; install Python 3.11 or newer" in output


def test_a_missing_python_is_refused(place: Path) -> None:
    code, output, _ = set_up(place, PYTHON="no-such-python")
    assert code == 1
    assert "`no-such-python` is not on the PATH" in output
