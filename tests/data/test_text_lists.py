"""Reading lists line by line: what is refused, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.core.errors import DataError
from gkd.data.text_lists import Faults, inner_path, read_lines, shown, split_csv


def write(folder: Path, content: bytes) -> Path:
    path = folder / "list.txt"
    path.write_bytes(content)
    return path


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfa\r\n\r\n  \nb \xc3\xa9\xe2\x80\xa8c")
    assert read_lines(path) == [(1, "a"), (4, "b é\u2028c")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\0c\n", "line 2: a NUL byte"),
        (b"a\n\n\xff\n", "line 3: is not UTF-8"),
        (b"a\n" + b"x" * 5000 + b"\n", "line 2: 5,000 characters are more than the 4,096 allowed"),
        (b"\n \n", "is empty"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_list(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_lines(write(tmp_path, content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        read_lines(tmp_path / "none.txt")


def test_faults_are_told_together() -> None:
    faults = Faults("a.txt", "lines are wrong")
    faults.raise_any()
    faults.add_line(3, "is odd")
    assert str(faults) == "a.txt: line 3: is odd"
    for number in range(4, 16):
        faults.add_line(number, "is odd")
    with pytest.raises(DataError) as caught:
        faults.raise_any()
    lines = str(caught.value).splitlines()
    assert lines[0] == "a.txt: 13 lines are wrong:"
    assert lines[1].strip() == "line 3: is odd"
    assert len(lines) == 12
    assert lines[-1].strip() == "and 3 more"


@pytest.mark.parametrize("text", ["", ".", "/etc/passwd", "../a.jpg", "a/../../b.jpg", "a/.."])
def test_paths_that_leave_the_folder(text: str) -> None:
    with pytest.raises(ValueError, match="no path below the folder"):
        inner_path(text)


def test_paths_in_their_plain_form() -> None:
    assert inner_path("./a//b.jpg") == "a/b.jpg"
    assert inner_path("a..b/c") == "a..b/c"


def test_csv_fields() -> None:
    assert split_csv('"a, b", c ,') == ["a, b", "c", ""]
    with pytest.raises(ValueError, match="is no CSV line"):
        split_csv('"a')


def test_long_pieces_are_shown_short() -> None:
    assert len(shown("x" * 4000)) < 70
    assert "\n" not in shown("a\nb")
