"""The tasks of `prepare.py` that make and change .rec files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.cli.prepare import main
from gkd.data import RecordFile
from gkd.data.image_header import image_size
from tests.data.faces import make_image


def _make_folder(path: Path, num_people: int = 4, num_images: int = 3) -> Path:
    for person in range(num_people):
        (path / f"person{person}").mkdir(parents=True)
        for image in range(num_images):
            (path / f"person{person}" / f"{image}.png").write_bytes(make_image(10 * person + image))
    return path


def test_a_round_of_all_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, a, b, out = _make_folder(tmp_path / "in"), tmp_path / "a.rec", tmp_path / "b.rec", tmp_path / "out.rec"
    assert main(["pack", str(folder), str(a), "--size", "8x12", "--workers", "2", "--decode-check"]) == 0
    assert image_size(RecordFile(a)[0][0]) == (8, 12)
    assert main(["subset", str(a), str(b), "--identities", "2", "--max-images", "2", "--seed", "1"]) == 0
    assert len(RecordFile(b)) == 4
    assert main(["merge", str(a), str(b), str(out), "--by-name"]) == 0
    assert (len(RecordFile(out)), RecordFile(out).num_identities) == (16, 4)
    assert main(["shuffle", str(out), str(tmp_path / "c.rec"), "--seed", "2"]) == 0
    assert main(["unpack", str(tmp_path / "c.rec"), str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").glob("*/*"))) == 16
    assert main(["unpack", str(a), str(tmp_path / "keys"), "--no-list"]) == 0
    assert (tmp_path / "keys" / "person0" / "01.jpg").exists()
    assert f"packed 12 images of 4 identities into {a}\n" in capsys.readouterr().err


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _make_folder(tmp_path / "in")
    (folder / "person2" / "1.png").write_bytes(b"text")
    assert main(["pack", str(folder), str(tmp_path / "a.rec"), "--workers", "2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}/person2/1.png: not a JPEG")
    assert error.count("\n") == 1
    assert main(["pack", str(folder), str(tmp_path / "a.rec"), "--on-bad", "skip", "--workers", "1"]) == 0
    assert (tmp_path / "a.skipped.csv").exists()


@pytest.mark.parametrize("size", ["x", "112x", "a", "12x12x12", "1.5"])
def test_sizes(tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["pack", str(tmp_path), str(tmp_path / "a.rec"), "--size", size])
    assert "is no size; give 112, or 112x96 (height x width)" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["pack", "unpack", "merge", "split", "shuffle", "subset"])
def test_help_has_an_example(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([task, "--help"])
    assert f"example:\n  tools/prepare.py {task} " in capsys.readouterr().out
