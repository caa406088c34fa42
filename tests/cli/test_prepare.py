"""The tool that makes data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gkd.cli.prepare import main
from gkd.data import PairSet, RecordFile
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


def write_people(folder: Path, num_people: int = 6, images_of_each: int = 3) -> Path:
    for person in range(num_people):
        (folder / f"person{person}").mkdir(parents=True)
        for image in range(images_of_each):
            (folder / f"person{person}" / f"{image}.png").write_bytes(make_image(10 * person + image))
    return folder


def test_split_and_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_people(tmp_path / "in"), tmp_path / "out"
    assert main(["split", str(folder), str(out), "--held-out", "4"]) == 0
    counts = {"held_out": {"identities": 4, "images": 12}, "train": {"identities": 2, "images": 6}}
    assert json.loads(capsys.readouterr().out) == counts
    assert RecordFile(out / "held_out.rec").num_identities == 4
    bin_path = tmp_path / "held_out.bin"
    arguments = ["pairs", str(out / "held_out.rec"), str(bin_path), "--num-pairs", "8", "--folds", "2"]
    assert main(arguments) == 0
    assert "with 8 pairs, 4 of them of one person" in capsys.readouterr().err
    pairs = PairSet.load(bin_path)
    assert pairs.is_same.tolist() == [True, True, False, False] * 2
    first = bin_path.read_bytes()
    assert main([*arguments, "--seed", "1"]) == 0
    assert bin_path.read_bytes() != first


def test_a_split_that_is_there_is_said_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_people(tmp_path / "in"), tmp_path / "out"
    arguments = ["split", str(folder), str(out), "--held-out"]
    assert main([*arguments, "2"]) == 0
    first = capsys.readouterr().out
    assert main([*arguments, "2"]) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert "already split with these settings" in again.err
    assert main([*arguments, "2", "--seed", "1"]) == 2
    assert "name another folder, or delete this one" in capsys.readouterr().err


def test_two_folders_become_one_set(tmp_path: Path) -> None:
    left, right = write_people(tmp_path / "left", 2), write_people(tmp_path / "right", 4)
    assert main(["split", str(left), str(right), str(tmp_path / "out"), "--held-out", "1"]) == 0
    train, held_out = RecordFile(tmp_path / "out" / "train.rec"), RecordFile(tmp_path / "out" / "held_out.rec")
    assert train.num_identities + held_out.num_identities == 4
    assert len(train) + len(held_out) == 6 + 12


def test_refusals_of_split_and_pairs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_people(tmp_path / "in")
    assert main(["split", str(folder), str(tmp_path / "out"), "--held-out", "5"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot hold out 5 of 6 identities")
    assert main(["pairs", str(folder), str(tmp_path / "a.bin"), "--folds", "1"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.endswith("the largest --num-pairs that works is 36\n")
