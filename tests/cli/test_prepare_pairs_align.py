"""`prepare.py pairs` with lists, and `prepare.py align`, by their command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.cli.prepare import main
from gkd.data import PairSet
from tests.data.faces import make_image
from tests.inference.photos import write_landmarks, write_photos


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for person, name in enumerate("ab"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for image in (1, 2):
            (tmp_path / "in" / name / f"{name}_{image:04d}.png").write_bytes(make_image(2 * person + image))
    (tmp_path / "pairs.txt").write_text("1\t1\na\t1\t2\na\t1\tb\t1\n")
    (tmp_path / "pairs.csv").write_text("left,right,is_same\na/a_0001.png,a/a_0002.png,1\na/a_0001.png,b/x.png,0\n")
    return tmp_path / "in"


def test_both_lists(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", str(source), str(tmp_path / "a.bin"), "--pairs", str(tmp_path / "pairs.txt")]) == 0
    assert "with 2 pairs, 1 of them of one person" in capsys.readouterr().err
    assert PairSet.load(tmp_path / "a.bin").is_same.tolist() == [True, False]
    (source / "b" / "x.png").write_bytes(make_image(9))
    assert (
        main(["pairs", str(source), str(tmp_path / "b.bin"), "--csv", str(tmp_path / "pairs.csv"), "--size", "8"]) == 0
    )
    assert len(PairSet.load(tmp_path / "b.bin")) == 2


def test_missing_images(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "pairs.csv"
    listed.write_text(f"{listed.read_text()}b/b_0001.png,a/a_0002.png,0\n")
    arguments = ["pairs", str(source), str(tmp_path / "a.bin"), "--csv", str(listed)]
    assert main(arguments) == 2
    assert "no image b/x.png (line 3)" in capsys.readouterr().err
    assert main([*arguments, "--on-missing", "skip"]) == 0
    assert "with 2 pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on-missing", "skip"], "--on-missing: belongs to the pairs of a list"),
        (["--pairs", "x", "--seed", "0"], "--seed: belongs to random pairs"),
        (["--csv", "x", "--num-pairs", "10"], "--num-pairs: belongs to random pairs"),
    ],
)
def test_what_does_not_fit(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["pairs", str(source), str(tmp_path / "a.bin"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_align(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, landmarks = write_photos(tmp_path / "photos"), write_landmarks(tmp_path / "l.csv")
    arguments = ["align", str(photos), str(tmp_path / "out"), "--landmarks", str(landmarks)]
    (photos / "top.jpg").write_bytes(b"damaged")
    assert main(arguments) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert "aligned 3 faces of 4 photos" in last
    assert last.endswith(f"no face for 1 photos, see {tmp_path / 'out' / 'not_found.csv'}")
    assert main([*arguments, "--size", "96"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'out'}: was aligned with other settings")


def test_align_needs_landmarks_or_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--landmarks", "a", "--detector", "b"]):
        with pytest.raises(SystemExit):
            main(["align", str(tmp_path), str(tmp_path / "out"), *arguments])
    assert "--detector" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["pairs", "align"])
def test_help_has_an_example(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([task, "--help"])
    assert f"example:\n  prepare.py {task} " in capsys.readouterr().out
