"""The persons on pairs: both formats, and every way in which a file can be wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd.core.errors import DataError
from gkd.data.pair_identities import identities_path, read_pair_identities, write_pair_identities

IS_SAME = np.array([True, False, False])
TEXT = "Ann Lee\tAnn Lee\nBob\tAnn Lee\nBob\tCid\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_names_become_numbers(tmp_path: Path) -> None:
    ids = read_pair_identities(write(tmp_path / "a.txt", TEXT), IS_SAME)
    assert ids.dtype == np.int64
    assert ids.tolist() == [[0, 0], [1, 0], [1, 2]]


def test_names_may_be_numbers(tmp_path: Path) -> None:
    """The first line looks like the header of a `pairs.txt`."""
    ids = read_pair_identities(write(tmp_path / "a.txt", "10\t300\r\n7\t7\r\n"), np.array([False, True]))
    assert ids.tolist() == [[0, 1], [2, 2]]


@pytest.mark.parametrize("header", ["1\t2\n", ""])
def test_the_list_that_the_set_was_made_from(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "pairs.txt", f"{header}Ann\t1\t2\nBob\t1\t3\nAnn\t1\tBob\t2\nCid\t1\tAnn\t4\n")
    names = {"Ann": 0, "Bob": 1, "Cid": 2}
    ids = read_pair_identities(path, np.array([True, False, True, False]))  # a list without folds is mixed
    assert ids.tolist() == [[names["Ann"]] * 2, [names["Ann"], names["Bob"]], [names["Bob"]] * 2, [2, 0]]


def test_a_list_with_folds_keeps_its_order(tmp_path: Path) -> None:
    fold = "Ann\t1\t2\nAnn\t1\tBob\t2\n"
    ids = read_pair_identities(write(tmp_path / "pairs.txt", f"2\t1\n{fold}{fold}"), np.array([True, False] * 2))
    assert ids.tolist() == [[0, 0], [0, 1]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ann\tAnn\nBob\tAnn\n", r"a\.txt: names the persons of 2 pairs, but the set has 3; one line a pair is needed"),
        ("Ann\tAnn\nBob\tBob\nBob\tCid\n", r"a\.txt: line 2: 'Bob' and 'Bob', but pair 1 of the set is of two persons"),
        ("Ann\tann\nBob\tAnn\nBob\tCid\n", r"a\.txt: line 1: 'Ann' and 'ann', but pair 0 of the set is of one person"),
        ("Ann\tAnn\nBob\tAnn\nBob\n", r"a\.txt: line 3: 'Bob', but two names split by a tab are needed"),
        ("Ann\tAnn\n\tAnn\nBob\tCid\tDan\n", r"2 lines are wrong:\s+line 2: .*\s+line 3: "),
        ("", r"a\.txt: is empty"),
        ("Ann\tAnn\nB\0b\tAnn\n", r"a\.txt: line 2: a NUL byte"),
    ],
)
def test_wrong_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pair_identities(write(tmp_path / "a.txt", text), IS_SAME)


def test_all_contradictions_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 lines contradict the set:\n\s+line 1: .*\n\s+line 2: .*\n\s+line 3: "):
        read_pair_identities(write(tmp_path / "a.txt", TEXT), ~IS_SAME)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt"):
        read_pair_identities(tmp_path / "gone.txt", IS_SAME)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = identities_path(tmp_path / "my.set.bin")
    assert path.name == "my.set.persons.txt"
    write_pair_identities(path, [("Ann Lee", "Ann Lee"), ("Bob", "Ann Lee"), ("Bob", "Cid")])
    assert path.read_text(encoding="utf-8") == TEXT
    assert read_pair_identities(path, IS_SAME).tolist() == [[0, 0], [1, 0], [1, 2]]


@pytest.mark.parametrize("name", ["", " ", "a\tb", "a\nb", " a", "a\0"])
def test_names_that_fit_no_line_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"a\.txt: pair 1: .* is no name that fits on a line between tabs"):
        write_pair_identities(tmp_path / "a.txt", [("a", "a"), (name, "b")])
    assert not (tmp_path / "a.txt").exists()


@given(content=st.binary(max_size=60))
def test_any_bytes_give_numbers_or_a_message(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(content)
    with suppress(DataError):
        ids = read_pair_identities(path, IS_SAME)
        assert ((ids[:, 0] == ids[:, 1]) == IS_SAME).all()


@pytest.mark.real
def test_the_persons_of_lfw(real_data: Path) -> None:
    is_same = np.repeat(np.tile([True, False], 10), 300)
    ids = read_pair_identities(real_data / "lfw" / "pairs.txt", is_same)
    assert ids.shape == (6000, 2)
    assert len(np.unique(ids)) > 4000
