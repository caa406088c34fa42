"""What the writer's files hold, as peers read them, and what an interrupted writer leaves."""

from __future__ import annotations

import fcntl
import logging
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data import RecordFile, RecordWriter
from gkd.data.record_writer import float32_below
from tests.data.faces import make_image, write_faces
from tests.data.peer_reader import MAGIC, read_identities, read_like_peers

WORD = struct.pack("<I", MAGIC)


def nasty_bodies() -> list[bytes]:
    """Bodies with the magic at every alignment, several times, back to back, and at the very ends."""
    head = b"\xff\xd8\xff\xe0"
    bodies = [head + bytes(shift) + WORD + b"x" * 5 + WORD + b"\xff\xd9" for shift in range(4)]
    bodies += [
        head + bytes(shift) + WORD * repeat + bytes(tail) for shift in range(4) for repeat in (2, 3) for tail in (0, 1)
    ]
    return [*bodies, WORD, WORD * 3, WORD[1:] + WORD + WORD[:3]]


def test_peers_read_what_was_written(tmp_path: Path) -> None:
    bodies = nasty_bodies()
    with RecordWriter(tmp_path / "a.rec") as writer:
        for number, body in enumerate(bodies):
            writer.write(number // 5, body)
    rows = [(number + 1, float(number // 5), body) for number, body in enumerate(bodies)]
    assert read_like_peers(tmp_path / "a.rec") == rows
    ends = [*range(1, len(bodies) + 1, 5), len(bodies) + 1]
    assert read_identities(tmp_path / "a.rec") == [*pairwise(ends)]
    assert list(RecordFile(tmp_path / "a.rec")) == [(body, int(label)) for _, label, body in rows]


@pytest.mark.parametrize("with_idx", [True, False])
def test_plain_files_take_labels_in_any_order(tmp_path: Path, with_idx: bool) -> None:
    rows = [(2, make_image(0)), (0, make_image(1)), (2, make_image(2)), (5, make_image(3))]
    names = ["a", "b", "c", "d", "e", "f"]
    with RecordWriter(tmp_path / "a.rec", layout="plain", identity_names=names) as writer:
        for label, body in rows:
            writer.write(label, body)
        assert writer.num_images == 4
    assert read_like_peers(tmp_path / "a.rec") == [(key, float(label), body) for key, (label, body) in enumerate(rows)]
    if not with_idx:
        (tmp_path / "a.idx").unlink()
    file = RecordFile(tmp_path / "a.rec")
    assert list(file) == [(body, label) for label, body in rows]
    assert file.keys.tolist() == [0, 1, 2, 3]
    assert (file.num_identities, file.identity_names) == (6, tuple(names))
    assert (tmp_path / "property").read_text() == "6,16,16\n"


@pytest.mark.parametrize("label", [-1, 1 << 24])
def test_labels_that_the_format_cannot_hold(tmp_path: Path, label: int) -> None:
    with (
        pytest.raises(DataError, match=rf"image 0 has label {label}, but the format keeps labels as float32"),
        RecordWriter(tmp_path / "a.rec", layout="plain") as writer,
    ):
        writer.write(label, b"a")
    assert list(tmp_path.iterdir()) == []


def test_the_list(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.rec", with_list=True) as writer:
        writer.write(0, b"a", "ann/1.jpg")
        writer.write(1, b"b", "bo/\udcff é.jpg")
    assert (tmp_path / "a.lst").read_bytes() == b"1\t0.000000\tann/1.jpg\n2\t1.000000\tbo/\xff \xc3\xa9.jpg\n"
    write_faces(tmp_path / "a.rec")
    assert not (tmp_path / "a.lst").exists()  # that of the file which was replaced
    (tmp_path / "b.lst").write_text("a user's own")
    write_faces(tmp_path / "b.rec")
    assert (tmp_path / "b.lst").read_text() == "a user's own"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "2 identity names for 1 identities"),
        ([" a"], "the identity name ' a' is empty, or has spaces"),
        (["\udcff"], r"the identity name '\\udcff' is not UTF-8; rename"),
    ],
)
def test_names_may_grow_and_are_checked_at_the_end(tmp_path: Path, names: list[str], message: str) -> None:
    growing: list[str] = []

    def write() -> None:
        with RecordWriter(tmp_path / "a.rec", identity_names=growing) as writer:
            writer.write(0, b"a")
            growing.extend(names)

    with pytest.raises(DataError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


class TestCounts:
    @pytest.mark.parametrize("count", [1, 1 << 24, (1 << 24) + 1, (1 << 25) + 3, 42_474_558, 42_474_559, 3 * 10**9])
    def test_rounding_down(self, count: int) -> None:
        found = float32_below(count)
        assert found == float(np.float32(found)) <= count
        assert float(np.nextafter(np.float32(found), np.float32(np.inf))) > count

    @pytest.mark.parametrize("last", [(1 << 24) - 1, 1 << 24, (1 << 24) + 1, (1 << 25) + 1, 42_474_557])
    def test_large_files_are_read_in_full(self, tmp_path: Path, last: int, caplog: pytest.LogCaptureFixture) -> None:
        """The real writer, pretending that the images before the last three are written already."""
        missing = last - 3
        path = tmp_path / "a.rec"

        class Offsets(list):  # type: ignore[type-arg]
            def __len__(self) -> int:
                length = super().__len__()
                return length if length == 0 else length + missing

        with RecordWriter(path) as writer:
            writer._offsets = Offsets(writer._offsets)  # type: ignore[assignment]
            for label, body in ((0, b"\xffa"), (0, b"\xffb"), (1, b"\xffc")):
                writer.write(label, body)
            offsets = writer._offsets
        listed = list(list.__iter__(offsets))
        keys = [0, *range(missing + 1, missing + len(listed))]
        assert keys[1:4] == [last - 2, last - 1, last]
        path.with_suffix(".idx").write_text("".join(f"{k}\t{o}\n" for k, o in zip(keys, listed, strict=True)))
        messages = [message for message in caplog.messages if "more than its header can count exactly" in message]
        claimed = float32_below(last + 1)
        assert len(messages) == (claimed != last + 1)
        for with_idx in (True, False):
            if not with_idx:
                path.with_suffix(".idx").unlink()
            file = RecordFile(path)
            assert file.keys.tolist() == [last - 2, last - 1, last]
            assert list(file) == [(b"\xffa", 0), (b"\xffb", 0), (b"\xffc", 1)]
        header = struct.unpack_from("<2f", path.read_bytes(), 8 + 24)
        assert last + 1 - 4 <= header[0] == claimed <= last + 1


class TestLeftOvers:
    def test_those_of_a_killed_writer_go(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        others = [".b.0123abcd.writing.rec", ".a.0123abcd.writing.bin", ".a.xyz.writing.rec", "a.0123abcd.writing.rec"]
        stale = ["a.0123abcd.writing.rec", "a.89abcdef.writing.lst", "a.0123abcd.writing.idx"]
        for name in [*(f".{name}" for name in stale), ".a.skipped.0123abcd.writing.csv", *others]:
            (tmp_path / name).write_bytes(b"part")
        write_faces(tmp_path / "a.rec")
        assert sorted(path.name for path in tmp_path.glob("*writing*")) == sorted(others)
        assert "writing.rec: removed; an interrupted task had left it" in caplog.text

    def test_those_of_a_living_writer_stay(self, tmp_path: Path) -> None:
        with RecordWriter(tmp_path / "a.rec") as first:
            first.write(0, b"first")
            with RecordWriter(tmp_path / "a.rec") as second:
                second.write(0, b"second")
            assert len(list(tmp_path.glob(".*writing.rec"))) == 1
        assert list(RecordFile(tmp_path / "a.rec")) == [(b"first", 0)]

    def test_file_systems_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError("no locks here")

        monkeypatch.setattr(fcntl, "flock", refuse)
        (tmp_path / ".a.0123abcd.writing.rec").write_bytes(b"part")
        faces = write_faces(tmp_path / "a.rec")
        assert list(RecordFile(tmp_path / "a.rec")) == faces
        assert (tmp_path / ".a.0123abcd.writing.rec").exists()
