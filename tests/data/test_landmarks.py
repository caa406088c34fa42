"""Landmark files: their headers, and all that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data.alignment import Points, template
from gkd.data.landmarks import read_landmarks

HEADER = "photo,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"


def row(photo: str, points: Points | None = None) -> str:
    return ",".join([photo, *(str(value) for value in (template() if points is None else points).ravel().tolist())])


def write(folder: Path, *lines: str) -> Path:
    path = folder / "landmarks.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "header",
    [
        HEADER,
        "path,le_x,le_y,re_x,re_y,nose_x,nose_y,lm_x,lm_y,rm_x,rm_y",
        "image_id,lefteye_x,lefteye_y,righteye_x,righteye_y,nose_x,nose_y,leftmouth_x,leftmouth_y,"
        "rightmouth_x,rightmouth_y",
        HEADER.upper(),
    ],
)
def test_headers(tmp_path: Path, header: str) -> None:
    landmarks = read_landmarks(write(tmp_path, header, row("a/b.jpg"), row("./c.jpg", template() + 1)))
    assert list(landmarks) == ["a/b.jpg", "c.jpg"]
    assert np.array_equal(landmarks["c.jpg"][0], template() + 1)


def test_columns_in_any_order_and_others_unread(tmp_path: Path) -> None:
    names = [*HEADER.split(",")[::-1], "crop"]
    values = [*row("a.jpg").split(",")[::-1], "anything"]
    landmarks = read_landmarks(write(tmp_path, ",".join(names), ",".join(values)))
    assert np.array_equal(landmarks["a.jpg"][0], template())


def test_several_faces(tmp_path: Path) -> None:
    lines = [f"face,{HEADER}", f"1,{row('a.jpg')}", f"2,{row('a.jpg', template() + 9)}"]
    assert len(read_landmarks(write(tmp_path, *lines))["a.jpg"]) == 2
    with pytest.raises(DataError, match=r"line 4: 'a\.jpg' is already in line 2"):
        read_landmarks(write(tmp_path, *lines, f"1,{row('a.jpg')}"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,b", "line 1: the header is 'a,b', but a column `photo` and ten of points are needed"),
        (HEADER.removeprefix("photo,"), "a column `photo`"),
        (HEADER.removesuffix(",y5"), "a column `photo`"),
        (f"{HEADER},path", "a column `photo`"),
        (f"{HEADER},x1", "has a column twice"),
        (f'"{HEADER}', "no CSV line"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_landmarks(write(tmp_path, header, row("a.jpg")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg,1,2", "line 2: 3 fields, but the header has 11"),
        (row("../a.jpg"), "no path below the folder"),
        (row("/a.jpg"), "no path below the folder"),
        (row("a.jpg").replace("38.2946", "nan"), "'nan' is no place in pixels"),
        (row("a.jpg").replace("38.2946", "-inf"), "'-inf' is no place"),
        (row("a.jpg").replace("38.2946", "1e9"), "'1e9' is no place"),
        (row("a.jpg").replace("38.2946", "left"), "'left' is no place"),
        (row("a.jpg").replace("38.2946", ""), "'' is no place"),
        (row("a.jpg", np.full((5, 2), 7.0)), r"two landmarks of 'a\.jpg' are at the same place"),
        (row("a.jpg", template()[[0, 1, 2, 3, 3]]), "at the same place"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_landmarks(write(tmp_path, HEADER, line, row("b.jpg")))


def test_all_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_landmarks(write(tmp_path, HEADER, row("a.jpg"), *["x"] * 12))
    assert "12 lines are wrong" in str(caught.value)
    assert str(caught.value).count("line 1") == 3, "lines 10 to 12 and no more of them"


def test_a_header_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has a header, but no landmarks"):
        read_landmarks(write(tmp_path, HEADER))


def test_the_persons_left_instead_of_the_pictures(tmp_path: Path) -> None:
    swapped = template()[[1, 0, 2, 4, 3]]
    with pytest.raises(DataError, match=r"left and right are exchanged in 2 of 3 faces, such as that of a\.jpg"):
        read_landmarks(write(tmp_path, HEADER, row("a.jpg", swapped), row("b.jpg", swapped), row("c.jpg")))
    assert len(read_landmarks(write(tmp_path, HEADER, row("a.jpg", swapped), row("b.jpg")))) == 2


@pytest.mark.real
def test_real_landmarks(real_data: Path) -> None:
    landmarks = read_landmarks(real_data / "lfw" / "photos" / "landmarks.csv")
    assert len(landmarks) == 200
    assert all((real_data / "lfw" / "photos" / photo).is_file() for photo in landmarks)
