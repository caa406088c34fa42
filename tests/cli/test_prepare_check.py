"""`prepare.py inspect` and `verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gkd.cli.prepare import main
from gkd.data import PairSet, RecordFile
from tests.data.check.damaged import sample, small_jpeg


def test_verify_a_clean_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sample().write(tmp_path / "a.rec")
    assert main(["verify", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: 12 usable images of 4 identities, 16x16 pixels, header and identity records",
        f"{path}: no faults",
    ]


def test_verify_and_repair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    span = sample().spans[2]
    content = bytearray(sample().content)
    content[span.start] ^= 255
    path = sample().write(tmp_path / "a.rec", bytes(content))
    arguments = ["verify", str(path), "--repair", str(tmp_path / "b.rec"), "--csv", str(tmp_path / "f.csv")]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert f"{path}: bytes {span.start} to {span.end - 1}: no record starts here" in output.out
    assert output.out.splitlines()[-1] == f"{path}: 1 index-offset, 1 missing, 1 structure"
    assert "wrote 11 images" in output.err
    assert len(RecordFile(tmp_path / "b.rec")) == 11
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 4
    assert main(["verify", str(tmp_path / "b.rec")]) == 0
    assert main([*arguments[:3], str(path)]) == 2
    assert "is the damaged file itself" in capsys.readouterr().err


def test_what_cannot_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.rec").write_text("text")
    assert main(["verify", str(tmp_path / "a.rec")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'a.rec'}: not a RecordIO file")
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert main(["verify", str(tmp_path / "a.bin"), "--repair", "b.rec"]) == 2
    assert main(["verify", str(tmp_path / "a.rec"), "--renumber"]) == 2
    assert main(["inspect"]) == 2
    assert main(["inspect", "--augment", "a.yaml"]) == 2
    assert "name the picture to draw with --sheet" in capsys.readouterr().err


def test_verify_pairs_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PairSet([small_jpeg(0), small_jpeg(1)], [True]).save(tmp_path / "a.bin")
    assert main(["verify", str(tmp_path / "a.bin")]) == 0
    assert "all 1 pairs are of one person" in capsys.readouterr().out
    (tmp_path / "in" / "p").mkdir(parents=True)
    (tmp_path / "in" / "p" / "a.jpg").write_bytes(small_jpeg(0)[:-9])
    assert main(["verify", str(tmp_path / "in")]) == 1
    assert f"{tmp_path / 'in'}/p/a.jpg: the jpeg image is cut short [fault: cut-short]" in capsys.readouterr().out


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sample().write(tmp_path / "a.rec")
    sheet, report = tmp_path / "sheet.png", tmp_path / "report.json"
    assert main(["inspect", str(path), "--sheet", str(sheet), "--images", "4", "--json", str(report), "--all"]) == 0
    assert "insightface header" in capsys.readouterr().out
    assert json.loads(report.read_text())["num_images"] == 12
    assert sheet.read_bytes().startswith(b"\x89PNG")
