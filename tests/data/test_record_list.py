"""The list of files beside a .rec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data import RecordFile
from gkd.data.record_list import ImageList, list_line, unsafe_name


def test_lists_of_im2rec(tmp_path: Path) -> None:
    path = tmp_path / "a.lst"
    path.write_bytes(b"7\t1.000000\tb o/2 x.jpg\r\n3\t0\t0.5\tann/1.jpg\n10\t2\t\xff.jpg")
    images = ImageList(path)
    assert images.keys.tolist() == [3, 7, 10]
    assert images.labels.tolist() == [0, 1, 2]
    assert [images[index] for index in range(len(images))] == ["ann/1.jpg", "b o/2 x.jpg", "\udcff.jpg"]
    assert list_line(10, 2, images[2]) == b"10\t2.000000\t\xff.jpg\n"


@pytest.mark.parametrize(
    "line", ["1\tann/1.jpg", "", "-1\t0\ta", "x\t0\ta", "1\tzero\ta", "1 0 a", "9" * 30 + "\t0\ta"]
)
def test_lines_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.lst").write_text(f"1\t0\ta/b.jpg\n{line}\n")
    with pytest.raises(DataError, match=r"a\.lst: line 2 is not a key, a tab, a label, a tab and a path: b'"):
        ImageList(tmp_path / "a.lst")


def test_lists_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.lst").write_text("1\t0\ta\n2\t1\tb\n")
    images = ImageList(tmp_path / "a.lst")
    images.check(np.array([1, 2]), np.array([0, 1]))
    with pytest.raises(DataError, match=r"lists 2 images, and not those of the \.rec \(3 images\)"):
        images.check(np.array([1, 2, 3]), np.array([0, 1, 1]))
    with pytest.raises(DataError, match=r"lists 2 images, and not those"):
        images.check(np.array([1, 3]), np.array([0, 1]))
    with pytest.raises(DataError, match=r"key 2 has label 1, but 4 in the \.rec"):
        images.check(np.array([1, 2]), np.array([0, 4]))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ann.jpg", ""),
        ("é \udcff", ""),
        ("x" * 255, ""),
        ("", "is empty"),
        (".", "begins with a dot"),
        ("..", "begins with a dot"),
        (".hidden.jpg", "begins with a dot"),
        ("a/b", "has a path separator"),
        ("a\0b", "has a control character"),
        ("a\tb", "has a control character"),
        ("a\nb", "has a control character"),
        ("x" * 256, "is longer than 255 bytes"),
        ("é" * 128, "is longer than 255 bytes"),
    ],
)
def test_names_of_files(name: str, problem: str) -> None:
    assert unsafe_name(name) == problem


@pytest.mark.real
@pytest.mark.parametrize("name", ["faceid25-testing", "faceid25-validation"])
def test_genuine_lists(real_data: Path, name: str) -> None:
    file = RecordFile(real_data / "recordio" / f"{name}.rec")
    images = ImageList(real_data / "recordio" / f"{name}.lst")
    images.check(file.keys, file.labels)
    assert all(images[index].count("/") == 1 for index in range(len(images)))
