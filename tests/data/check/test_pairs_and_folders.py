"""Checks of .bin files and of folders, and the list of findings."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data.check import Faults, check_folder, check_pairs, unbalanced_folds
from gkd.data.check import faults as faults_module
from gkd.data.pairs import PairSet
from tests.data.check.damaged import small_jpeg
from tests.data.faces import make_image


def _texts(faults: Faults) -> list[str]:
    return [faults.line(fault).removeprefix(str(faults.path)) for fault in faults]


def _pairs(num_pairs: int = 20) -> PairSet:
    """Ten folds, each of one pair of one person and one of two."""
    images = [small_jpeg(number) for number in range(2 * num_pairs)]
    return PairSet(images, [number % 2 == 0 for number in range(num_pairs)])


def test_clean_pairs(tmp_path: Path) -> None:
    _pairs().save(tmp_path / "a.bin")
    pairs, faults = check_pairs(tmp_path / "a.bin")
    assert (len(pairs), _texts(faults), faults.is_clean) == (20, [], True)


def test_faults_of_pairs(tmp_path: Path) -> None:
    pairs = _pairs()
    pairs.images[1] = pairs.images[1][:-20]
    pairs.images[3] = make_image(1, (8, 9))
    pairs.images[5], pairs.images[7] = pairs.images[4], pairs.images[6]
    pairs.images[20:22] = pairs.images[31], pairs.images[30]
    pairs.images[22:24] = pairs.images[32:34]
    pairs.save(tmp_path / "a.bin")
    _, faults = check_pairs(tmp_path / "a.bin")
    assert sorted(_texts(faults)) == sorted(
        [
            ": pair 0, right image: the jpeg image is cut short [fault: cut-short]",
            ": pair 1, right image: the image is 8x9 pixels, most are 16x16 [fault: size]",
            ": pair 2: both images are the same, byte for byte [warning: same-image]",
            ": pair 3: both images are the same, byte for byte, but it is said to show two persons [fault: same-image]",
            ": pair 15: is pair 10 again, with the other flag [fault: contradiction]",
            ": pair 16: is pair 11 again, with the other flag [fault: contradiction]",
        ]
    )


def test_pairs_that_repeat_and_folds(tmp_path: Path) -> None:
    pairs = _pairs()
    pairs.images[4:6] = pairs.images[0], pairs.images[1]
    pairs.is_same[1] = True
    pairs.save(tmp_path / "a.bin")
    _, faults = check_pairs(tmp_path / "a.bin")
    assert faults.is_clean
    assert _texts(faults) == [
        ": pair 2: is pair 0 again [warning: duplicate]",
        ": 20 pairs in 10 contiguous folds: not half of one person in folds [0] [warning: folds]",
    ]
    assert unbalanced_folds(pairs) == [0]
    PairSet(pairs.images[:8], [True, False, True, False]).save(tmp_path / "few.bin")
    assert "4 pairs cannot be cut into 10 folds" in _texts(check_pairs(tmp_path / "few.bin")[1])[-1]
    PairSet(pairs.images[6:10], [False, False]).save(tmp_path / "one.bin")
    assert "all 2 pairs are of two persons" in _texts(check_pairs(tmp_path / "one.bin")[1])[0]


def test_what_is_no_set_of_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"text")
    with pytest.raises(DataError, match=r"a\.bin: damaged, truncated or not a pickle"):
        check_pairs(tmp_path / "a.bin")


def _folder(path: Path) -> Path:
    for number in range(6):
        person = path / f"p{number // 2}"
        person.mkdir(parents=True, exist_ok=True)
        (person / f"{number}.jpg").write_bytes(small_jpeg(number))
    return path


@pytest.mark.parametrize("num_workers", [1, 2])
def test_folders(tmp_path: Path, num_workers: int) -> None:
    folder = _folder(tmp_path / "in")
    faces, faults = check_folder(folder, num_workers)
    assert (len(faces), _texts(faults)) == (6, [])
    (folder / "p0" / "0.jpg").write_bytes(b"")
    (folder / "p0" / "9.png").write_bytes(make_image(1, (8, 9)))
    (folder / "p1" / "x.jpg").write_bytes(small_jpeg(2))
    (folder / "p2" / "x.jpg").write_bytes(small_jpeg(2))
    assert _texts(check_folder(folder, num_workers)[1]) == [
        "/p2/x.jpg: the image is the same as p1/2.jpg [fault: duplicate-across]",
        "/p0/0.jpg: it has no image [fault: no-image]",
        "/p0/9.png: the image is 8x9 pixels, most are 16x16 [fault: size]",
        "/p1/x.jpg: the image is the same as p1/2.jpg [warning: duplicate]",
    ]


def test_findings_are_counted_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults_module, "_MAX_KEPT_OF_A_KIND", 5)
    faults = Faults(Path("a.rec"))
    assert (faults.is_clean, faults.summary(), list(faults.lines())) == (True, "no faults", [])
    faults.add("index", "late", is_warning=True)
    assert faults.is_clean
    for key in range(8):
        faults.add_record("label", key, 10 * key, "bad, “really”")
    assert not faults.is_clean
    assert faults.summary() == "8 label, 1 index (warning)"
    assert list(faults.lines(2)) == [
        "a.rec: key 0 at byte 0: bad, “really” [fault: label]",
        "a.rec: key 1 at byte 10: bad, “really” [fault: label]",
        "a.rec: … and 6 more of kind label",
        "a.rec: late [warning: index]",
    ]
    faults.write_csv(tmp_path / "faults.csv")
    with (tmp_path / "faults.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 6
    assert (rows[1]["level"], rows[1]["key"], rows[1]["start_byte"], rows[1]["what"]) == (
        "fault",
        "1",
        "10",
        "bad, “really”",
    )
    assert (rows[5]["level"], rows[5]["key"], rows[5]["place"]) == ("warning", "", "")


@pytest.mark.real
def test_genuine_pairs(real_data: Path) -> None:
    pairs, faults = check_pairs(real_data / "recordio" / "faceid25-validation.bin")
    assert len(pairs) == 749
    assert faults.is_clean
    assert faults.warning_counts["one-class"] == 1
    assert np.all(pairs.is_same)
