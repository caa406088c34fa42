"""The tool that makes data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gkd.cli.prepare import main
from gkd.data import RecordFile
from tests.conftest import ROOT
from tests.data.faces import make_image


def test_pack(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "in" / f"person{number}").mkdir(parents=True)
        (tmp_path / "in" / f"person{number}" / "a.png").write_bytes(make_image(number))
    assert main(["pack", str(tmp_path / "in"), str(tmp_path / "a.rec")]) == 0
    assert RecordFile(tmp_path / "a.rec").identity_names == ("person0", "person1", "person2")


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(tmp_path / "none"), str(tmp_path / "a.rec")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such folder\n"


def test_the_shim_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "prepare.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "synthetic" in done.stdout
    assert "pack" in done.stdout
