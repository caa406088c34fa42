"""`prepare.py shards`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.cli.prepare import main
from gkd.data.tar_shards import TarShards
from tests.data.faces import write_faces


def test_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_faces(tmp_path / "a.rec", 20, 4)
    arguments = ["shards", str(tmp_path / "a.rec"), str(tmp_path / "out"), "--images-per-shard", "8", "--seed", "2"]
    assert main(arguments) == 0
    assert "20 images in 3 shards" in capsys.readouterr().err
    assert len(TarShards(tmp_path / "out")) == 20
    assert main(arguments) == 0
    assert "3 of them from before" in capsys.readouterr().err


def test_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_faces(tmp_path / "a.rec", 20, 4)
    main(["shards", str(tmp_path / "a.rec"), str(tmp_path / "out"), "--images-per-shard", "8"])
    for name in ("index.json", "samples.bin"):
        (tmp_path / "out" / name).unlink()
    assert main(["shards", "--index", str(tmp_path / "out")]) == 0
    assert "indexed 20 images of 4 identities in 3 shards" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.rec"], "error: shards: give SOURCE and OUT_FOLDER, or --index FOLDER\n"),
        (["a.rec", "out", "--index", "x"], "error: shards: --index FOLDER takes no SOURCE and OUT_FOLDER\n"),
        (["nowhere.rec", "out"], "error: nowhere.rec: no such file\n"),
        (["--index", "nowhere"], "error: nowhere: no such folder\n"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["shards", *arguments]) == 2
    assert capsys.readouterr().err == message


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["shards", "--help"])
    assert "tools/prepare.py shards train.rec shards/" in capsys.readouterr().out
