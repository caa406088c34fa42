"""`prepare.py clean`."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.cli.prepare import main
from gkd.data import RecordFile, RecordWriter
from tests.inference.noisy_faces import embed, picture, some_wrong, write_labelled

NAMES = ["ann", "bob", "cid", "dan", "eve", "fay"]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path, list[int]]:
    """A .rec, the folder of its embeddings, and its images under a wrong label."""
    shown, wrong = some_wrong()
    faces = write_labelled(tmp_path / "train.rec", shown, NAMES)
    embed(tmp_path / "centres", faces)
    return tmp_path / "train.rec", tmp_path / "centres", wrong


def test_a_set_without_its_noise(
    tmp_path: Path, places: tuple[Path, Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, centres, wrong = places
    out, table = tmp_path / "out" / "train.rec", tmp_path / "left_out.csv"
    before = source.read_bytes()
    command = ["clean", str(source), str(out), "--centres", str(centres), "--min-cosine", "0.5", "--mislabelled"]
    assert main([*command, "--csv", str(table)]) == 0
    output = capsys.readouterr()
    assert "48 images of 6 identities; their cosine to the rest of their identity:" in output.out
    assert "left out: 6 images (12.50 %), 0 identities lose all of theirs" in output.out
    assert "  unlike the rest of their identity: 6\n  nearer to another identity: 6\n" in output.out
    assert f"wrote 42 images of 6 identities into {out}\n" in output.err
    assert RecordFile(out).identity_names == tuple(NAMES)
    kept = {RecordFile(source)[index] for index in range(48) if index not in wrong}
    assert {RecordFile(out)[index] for index in range(42)} == kept
    assert source.read_bytes() == before
    listed = [int(line.split(",")[0]) for line in table.read_text().splitlines()[1:]]
    assert sorted(listed) == wrong
    assert main(command) == 2
    assert f"error: {out}: exists; name another file, or remove it first\n" in capsys.readouterr().err


def test_a_table_is_followed_to_the_row(
    tmp_path: Path, places: tuple[Path, Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, centres, wrong = places
    table, out = tmp_path / "left_out.csv", tmp_path / "out" / "train.rec"
    common = ["--centres", str(centres)]
    assert main(["clean", str(source), *common, "--dry-run", "--mislabelled", "--csv", str(table)]) == 0
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))  # a person takes rows out
    assert main(["clean", str(source), str(out), *common, "--list", str(table)]) == 0
    assert "left out: 2 images" in capsys.readouterr().out.split("left out: 6 images")[1]
    gone = {int(line.split(",")[0]) for line in table.read_text().splitlines()[1:]}
    assert gone < set(wrong)
    kept = {RecordFile(source)[index] for index in range(48) if index not in gone}
    assert {RecordFile(out)[index] for index in range(46)} == kept


def test_what_cannot_be_read_goes_unless_a_table_says_what_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, common = tmp_path / "train.rec", ["--centres", str(tmp_path / "centres")]
    with RecordWriter(source) as writer:
        for number in range(6):
            writer.write(0, b"\xff\xd8 no image" if number == 4 else picture(0, number))
    embed(tmp_path / "centres", RecordFile(source), is_skipping=True)
    assert main(["clean", str(source), str(tmp_path / "a" / "a.rec"), *common, "--min-cosine", "-1"]) == 0
    assert "left out: 1 images (16.67 %)" in capsys.readouterr().out
    assert len(RecordFile(tmp_path / "a" / "a.rec")) == 5
    (tmp_path / "list.csv").write_text("sample_id\n0\n")
    command = ["clean", str(source), str(tmp_path / "b" / "b.rec"), *common]
    assert main([*command, "--list", str(tmp_path / "list.csv"), "--sheet", str(tmp_path / "a.png")]) == 0
    left = [RecordFile(tmp_path / "b" / "b.rec")[index] for index in range(5)]
    assert left == [RecordFile(source)[index] for index in range(1, 6)]


def test_a_dry_run_writes_nothing(
    tmp_path: Path, places: tuple[Path, Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, centres, _ = places
    before = sorted(tmp_path.rglob("*"))
    assert main(["clean", str(source), str(tmp_path / "o.rec"), "--centres", str(centres), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    bars = [line.split()[3] for line in output.splitlines() if re.match(r" ?-?\d.\d\d to ", line)]
    assert sum(int(count) for count in bars) == 48
    assert re.search(r"^ 0.50 +6   12.50   0$", output, re.MULTILINE)
    assert "left out: 0 images (0.00 %)" in output


def test_the_picture_shows_the_worst(
    tmp_path: Path, places: tuple[Path, Path, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    source, centres, _ = places
    common = ["clean", str(source), "--centres", str(centres), "--dry-run", "--sheet", str(tmp_path / "a.png")]
    assert main([*common, "--mislabelled", "--images", "2"]) == 0
    sheet = cv2.imread(str(tmp_path / "a.png"))
    assert sheet is not None
    assert sheet.shape[1] == 2 * (8 + 4) + 4
    (tmp_path / "a.png").unlink()
    assert main(common) == 0
    assert not (tmp_path / "a.png").exists()
    assert main([*common, "--mislabelled", "--images", "0"]) == 2


def test_an_identity_that_goes_moves_the_others_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [(0, 0)] * 5 + [(40, 1), (41, 1)] + [(2, 2)] * 5
    source = write_labelled(tmp_path / "train.rec", shown, NAMES[:3]).path
    embed(tmp_path / "centres", RecordFile(source))
    out = tmp_path / "out" / "train.rec"
    command = ["clean", str(source), str(out), "--centres", str(tmp_path / "centres"), "--min-cosine", "0.5"]
    assert main(command) == 2
    assert "1 identities would lose all their images: bob; let them go with --drop-empty" in capsys.readouterr().err
    assert main([*command, "--drop-empty"]) == 0
    assert RecordFile(out).identity_names == ("ann", "cid")
    assert np.unique(RecordFile(out).labels).tolist() == [0, 1]


def test_a_folder_of_identities(tmp_path: Path, places: tuple[Path, Path, list[int]]) -> None:
    source, _, wrong = places
    assert main(["unpack", str(source), str(tmp_path / "faces"), "--no-list"]) == 0
    from gkd.data import FaceFolder

    embed(tmp_path / "of_folder", FaceFolder(tmp_path / "faces"))
    common = ["--centres", str(tmp_path / "of_folder"), "--mislabelled"]
    assert main(["clean", str(tmp_path / "faces"), str(tmp_path / "out.rec"), *common]) == 0
    assert len(RecordFile(tmp_path / "out.rec")) == 48 - len(wrong)
    assert RecordFile(tmp_path / "out.rec").identity_names == tuple(NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["o.rec"], "say what noise is: --min-cosine X, --mislabelled, or --list CSV"),
        (["--min-cosine", "0"], "name the file to write, OUT.rec, or give --dry-run"),
        (["o.rec", "--list", "a.csv", "--mislabelled"], "--list leaves out exactly its images"),
        (["o.rec", "--list", "a.csv", "--min-cosine", "0"], "--list leaves out exactly its images"),
        (["o.rec", "--min-cosine", "0", "--margin", "0"], "--margin has no meaning without --mislabelled"),
        (["o.rec", "--list", "a.csv", "--rounds", "2"], "--rounds has no meaning without"),
        (["o.rec", "--min-cosine", "2"], "--min-cosine must lie in [-1, 1), got 2.0"),
        (["o.rec", "--mislabelled", "--margin", "-1"], "--margin must lie in [0, 2), got -1.0"),
        (["o.rec", "--mislabelled", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["o.rec", "--list", "none.csv"], "none.csv: no such file"),
        (["o.rec", "--mislabelled", "--csv", "train.rec"], "clean --csv: the name must end in .csv, got train.rec"),
        (["out", "--mislabelled"], "out: the name must end in .rec"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path,
    places: tuple[Path, Path, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    source, centres, _ = places
    monkeypatch.chdir(tmp_path)
    assert main(["clean", str(source), *options, "--centres", str(centres)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert not list(tmp_path.glob("o*"))


def test_other_data_are_refused(
    tmp_path: Path, places: tuple[Path, Path, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, centres, _ = places
    other = write_labelled(tmp_path / "other" / "train.rec", [(0, 0), (1, 1)])
    assert main(["clean", str(other.path), "o.rec", "--centres", str(centres), "--mislabelled"]) == 2
    assert f"{centres}: holds embeddings of other data" in capsys.readouterr().err


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["clean", "--help"])
    assert "example:\n  tools/prepare.py clean " in capsys.readouterr().out
