"""Files read piece by piece: the same bytes as the file's, no more than it has, and clear refusals."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data import PairSet
from gkd.data.bounded_stream import open_bounded
from tests.data.faces import make_image


def test_reads_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one\ntwo\nthree")
    with open_bounded(path, 13) as file:
        assert file.read(2) == b"on"
        assert file.readline() == b"e\n"
        buffer = bytearray(3)
        assert file.readinto(buffer) == 3  # type: ignore[attr-defined]
        assert buffer == b"two"
        assert file.read(0) == b""
        assert file.read() == b"\nthree"
        assert (file.read(5), file.readline(), file.readinto(buffer)) == (b"", b"", 0)  # type: ignore[attr-defined]


def test_a_huge_read_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    tracemalloc.start()
    try:
        with open_bounded(path, 10) as file:
            assert file.read(1 << 40) == b"abc"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_bytes_added_later_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    with open_bounded(path, 3) as file:
        with path.open("ab") as other:
            other.write(b"def\n")
        assert file.readline() + file.read() == b"abc"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abcd")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        path: r"a: 4 bytes is more than the 3 bytes allowed for this kind of file",
        tmp_path: "is a folder, but a file is needed",
        tmp_path / "none": "none: no such file",
        tmp_path / "pipe": "pipe: is not a regular file",
        Path("a\0b"): "cannot be read: ",
    }
    for each, message in cases.items():
        with pytest.raises(DataError, match=message), open_bounded(each, 3):
            pass


@pytest.mark.parametrize("kind", [bytes, lambda image: np.frombuffer(image, dtype=np.uint8)], ids=["bytes", "arrays"])
def test_a_set_is_in_memory_once(tmp_path: Path, kind: Callable[[bytes], Any]) -> None:
    image = make_image(0) + bytes(100_000)
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(([kind(image[:-1] + bytes([n])) for n in range(40)], [True] * 20)))
    tracemalloc.start()
    try:
        pairs = PairSet.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(pairs.images) == 40
    assert peak < 1.25 * path.stat().st_size
