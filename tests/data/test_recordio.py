"""Reading and writing .rec files."""

from __future__ import annotations

import contextlib
import itertools
import logging
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkd.core.errors import DataError
from gkd.data import RecordFile, RecordWriter
from gkd.data.record_format import MAGIC, frame, pack_record
from tests.data.faces import make_image, write_faces

Row = tuple[int, tuple[float, ...], bytes]


def _write_rows(path: Path, rows: Sequence[Row], *, with_idx: bool = True) -> Path:
    """A file of any records, in the order given."""
    lines, content = [], b""
    for key, labels, body in rows:
        lines.append(f"{key}\t{len(content)}\n")
        content += frame(pack_record(key, labels, body))
    path.write_bytes(content)
    if with_idx:
        path.with_suffix(".idx").write_text("".join(lines))
    return path


def _edit_idx(path: Path, edit: dict[int, str]) -> None:
    """Replace lines of the .idx by number."""
    idx = path.with_suffix(".idx")
    lines = idx.read_text().splitlines()
    idx.write_text("".join(edit.get(number, line) + "\n" for number, line in enumerate(lines)))


@pytest.mark.parametrize("with_idx", [True, False])
def test_written_files_read_back(tmp_path: Path, with_idx: bool) -> None:
    path = tmp_path / "a.rec"
    faces = write_faces(path)
    if not with_idx:
        (tmp_path / "a.idx").unlink()
    file = RecordFile(path)
    assert len(file) == 20
    assert file.keys.dtype == np.int64
    assert file.keys.tolist() == list(range(1, 21))
    assert [file[index] for index in range(20)] == faces
    assert file.num_identities == 4
    assert file.identity_names is None
    assert (tmp_path / "property").read_text() == "4,16,16\n"
    assert file.describe(3) == f"{path}: key 4 at byte {file._offsets[3]}"
    for index in (-1, 20):
        with pytest.raises(IndexError, match=r"no image .*; there are 20"):
            file[index]


def test_layout_is_the_public_one(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:
        for label, body in ((0, b"a"), (0, b"bc"), (1, b"def")):
            writer.write(label, body)
    rows: list[Row] = [(0, (4.0, 6.0), b""), (1, (0.0,), b"a"), (2, (0.0,), b"bc"), (3, (1.0,), b"def")]
    expected = _write_rows(tmp_path / "b.rec", [*rows, (4, (1.0, 3.0), b""), (5, (3.0, 4.0), b"")])
    assert path.read_bytes() == expected.read_bytes()
    assert (tmp_path / "a.idx").read_text() == (tmp_path / "b.idx").read_text()
    assert not (tmp_path / "property").exists()  # the bodies are no images


_bodies = st.lists(st.sampled_from([MAGIC, MAGIC[:3], MAGIC[1:], b"\0", b"ab", b"xyz1"]), min_size=1).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.tuples(_bodies, st.booleans()), min_size=1, max_size=6))
def test_any_payload_comes_back(tmp_path: Path, rows: list[tuple[bytes, bool]]) -> None:
    path, label, expected = tmp_path / "a.rec", 0, []
    with RecordWriter(path) as writer:
        for number, (body, is_next) in enumerate(rows):
            label += is_next and number > 0
            writer.write(label, body)
            expected.append((body, label))
    with_idx = RecordFile(path)
    (tmp_path / "a.idx").unlink()
    scanned = RecordFile(path)
    assert list(with_idx) == list(scanned) == expected
    assert with_idx.num_identities == scanned.num_identities == label + 1
    assert with_idx.fingerprint == scanned.fingerprint


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(share=st.floats(0, 1, exclude_max=True), with_idx=st.booleans())
def test_a_truncated_file_is_refused(tmp_path: Path, share: float, with_idx: bool) -> None:
    path = tmp_path / "a.rec"
    if not path.exists():
        write_faces(path)
        (tmp_path / "whole").write_bytes(path.read_bytes())
        (tmp_path / "whole.idx").write_bytes((tmp_path / "a.idx").read_bytes())
    content = (tmp_path / "whole").read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    (tmp_path / "a.idx").unlink(missing_ok=True)
    if with_idx:
        (tmp_path / "a.idx").write_bytes((tmp_path / "whole.idx").read_bytes())
    _refused_or_complete(path)


def _open(path: Path) -> RecordFile | None:
    with contextlib.suppress(DataError):
        return RecordFile(path)
    return None


def _refused_or_complete(path: Path) -> None:
    """Without an index, the identity records at the end may be lost; the images may not."""
    file = _open(path)
    if file is None:
        return
    assert not path.with_suffix(".idx").exists()
    assert len(file) == 20
    assert file.num_identities == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data(), with_idx=st.booleans())
def test_flipped_bytes_never_crash(tmp_path: Path, data: st.DataObject, with_idx: bool) -> None:
    path = tmp_path / "a.rec"
    write_faces(path, num_images=3, num_identities=2)
    if not with_idx:
        (tmp_path / "a.idx").unlink()
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        file = RecordFile(path)
        assert file.num_identities >= 1
        assert all(label < file.num_identities for _, label in file)


@pytest.mark.parametrize("with_idx", [True, False])
@pytest.mark.parametrize("first", [0, 5])
def test_headerless_and_shuffled(tmp_path: Path, with_idx: bool, first: int) -> None:
    keys = [first + 2, first, first + 1]
    rows = [(key, (float(key % 2), 0.5), b"\xff%d" % key) for key in keys]
    file = RecordFile(_write_rows(tmp_path / "a.rec", rows, with_idx=with_idx))
    assert file.keys.tolist() == sorted(keys)
    assert [file[index] for index in range(3)] == [(b"\xff%d" % key, key % 2) for key in sorted(keys)]
    assert file.num_identities == 2


def test_ids_that_are_not_unique(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write_rows(tmp_path / "a.rec", [(7, (0.0,), b"a"), (7, (2.0,), b"b")], with_idx=False)
    file = RecordFile(path)
    assert "ids are not unique" in caplog.text
    assert file.keys.tolist() == [0, 1]
    assert list(file) == [(b"a", 0), (b"b", 2)]
    size = len(frame(pack_record(7, (0.0,), b"a")))
    path.with_suffix(".idx").write_text(f"4\t{size}\n9\t0\n")
    assert list(RecordFile(path)) == [(b"b", 2), (b"a", 0)]
    assert RecordFile(path).num_identities == 3


def _big_rows(last: int) -> list[Row]:
    """A header whose counts float32 rounds, the last three images before it, and two identity records."""
    images: list[Row] = [(key, (float(key == last),), b"image") for key in range(last - 2, last + 1)]
    ranges: list[Row] = [(last + 1, (1.0, float(last)), b""), (last + 2, (float(last), float(last + 1)), b"")]
    return [(0, (float(last + 1), float(last + 3)), b""), *images, *ranges]


@pytest.mark.parametrize("with_idx", [True, False])
@pytest.mark.parametrize("last", [42_474_557, 42_474_560, (1 << 24) + 2, (1 << 24) + 4, 1 << 24])
def test_counts_beyond_float32(tmp_path: Path, last: int, with_idx: bool) -> None:
    rows = _big_rows(last)
    # Identity records as they come back: starts and ends are rounded as well, and may even be equal.
    file = RecordFile(_write_rows(tmp_path / "a.rec", rows, with_idx=with_idx))
    assert file.keys.tolist() == [last - 2, last - 1, last]
    assert file.num_identities == 2


def test_a_header_that_claims_too_many_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Row] = [(0, (9.0, 10.0), b""), (1, (0.0,), b"a"), (2, (0.0,), b"b"), (3, (1.0, 3.0), b"")]
    file = RecordFile(_write_rows(tmp_path / "a.rec", rows))
    assert list(file) == [(b"a", 0), (b"b", 0)]
    assert "the header says 8 images, its identity records follow 2" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [(0, (2.0, 3.0), b""), (1, (0.0,), b"a"), (2, (0.0,), b"b")],
            "key 2 at byte .*: an image, but the header says",
        ),
        ([(0, (5.0, 6.0), b""), (1, (0.0,), b"a")], "the header says 4 images, but 1 are there"),
        ([(0, (1.5, 3.0), b""), (1, (0.0,), b"a")], "the header says that images end before key 1.5"),
        ([(0, (float("nan"), 3.0), b""), (1, (0.0,), b"a")], "images end before key nan"),
        ([(0, (float("inf"), 3.0), b""), (1, (0.0,), b"a")], "images end before key inf"),
        ([(0, (2.0, 3.0), b"")], "the header says 1 images, but 0 are there|holds no images"),
    ],
)
def test_headers_that_lie(tmp_path: Path, rows: list[Row], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RecordFile(_write_rows(tmp_path / "a.rec", rows))


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 3e9])
def test_unfit_labels(tmp_path: Path, label: float) -> None:
    file = RecordFile(_write_rows(tmp_path / "a.rec", [(1, (0.0,), b"a"), (2, (label,), b"b")]))
    assert file[0] == (b"a", 0)
    with pytest.raises(DataError, match=r"a\.rec: key 2 at byte 36: label .*, but a whole number"):
        file[1]
    with pytest.raises(DataError, match=r"a\.rec: key 2 at byte 36: label .*, but a whole number"):
        _ = file.num_identities


def test_a_label_beyond_the_identity_records(tmp_path: Path) -> None:
    rows: list[Row] = [(key, (float(key),), b"a") for key in range(1000)]
    path = _write_rows(tmp_path / "a.rec", rows)
    file = RecordFile(path)
    assert file.num_identities == 1000
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, int(file._offsets[5]) + 12, 5000.0)
    path.write_bytes(content)
    with pytest.raises(DataError, match="key 5 at byte 180: label 5000, but the file has 1000 identities"):
        file[5]
    assert RecordFile(path).num_identities == 5001


def test_an_image_without_content(tmp_path: Path) -> None:
    file = RecordFile(_write_rows(tmp_path / "a.rec", [(1, (0.0,), b"a"), (2, (1.0,), b"")]))
    with pytest.raises(DataError, match="key 2 at byte 36: the record has no image"):
        file[1]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"not a rec", "not a RecordIO file"), (None, "no such file")]
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.rec"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.rec: {message}"):
        RecordFile(path)
    with pytest.raises(DataError, match="is not a file"):
        RecordFile(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({3: "2\t80"}, "key 2 stands there more than once"),
        ({3: "3\t999999999"}, "key 3 is said to be at byte 999999999, outside the .rec file"),
        ({3: "3\t-4"}, "key 3 is said to be at byte -4, outside"),
        ({3: "-3\t40"}, "key -3 is negative"),
        ({3: "3 80"}, "not an index"),
        ({3: "3\t80.5"}, "not an index"),
        ({3: "three\t80"}, "not an index"),
        ({3: "3\t80\t1"}, "not an index"),
        ({3: ""}, "not an index"),
        ({3: "é\t80"}, "not an index"),
    ],
)
def test_an_index_that_is_damaged(tmp_path: Path, edit: dict[int, str], message: str) -> None:
    path = tmp_path / "a.rec"
    write_faces(path)
    _edit_idx(path, edit)
    with pytest.raises(DataError, match=rf"a\.idx: {message}"):
        RecordFile(path)


def test_an_empty_index(tmp_path: Path) -> None:
    write_faces(tmp_path / "a.rec")
    (tmp_path / "a.idx").write_text("")
    with pytest.raises(DataError, match=r"a\.idx: lists no records"):
        RecordFile(tmp_path / "a.rec")


def test_an_index_that_disagrees(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    write_faces(path)
    offsets = RecordFile(path)._offsets
    _edit_idx(path, {3: f"3\t{offsets[3]}", 4: f"4\t{offsets[2]}", 5: f"5\t{offsets[4] + 4}"})
    file = RecordFile(path)
    assert file[1][1] == 0
    with pytest.raises(DataError, match=rf"key 3 at byte {offsets[3]}: the record there has id 4; the .idx belongs to"):
        file[2]
    with pytest.raises(DataError, match=rf"key 5, byte {offsets[4] + 4}: no record starts here"):
        file[4]


def test_an_index_that_stops_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write_rows(tmp_path / "a.rec", [(1, (0.0,), b"a"), (2, (1.0,), b"b")])
    path.with_suffix(".idx").write_text("1\t0\n")
    assert len(RecordFile(path)) == 1
    assert "the .idx ends at byte 36 of 72" in caplog.text


def test_a_record_is_read_in_any_process(tmp_path: Path) -> None:
    write_faces(tmp_path / "a.rec")
    file = RecordFile(tmp_path / "a.rec")
    first, num_identities = file[0], file.num_identities
    copy = pickle.loads(pickle.dumps(file))
    assert copy._reader._descriptor is None
    assert (copy[0], copy.num_identities, copy.fingerprint) == (first, num_identities, file.fingerprint)


def test_fingerprint_sees_order_labels_and_content(tmp_path: Path) -> None:
    def fingerprint(name: str, rows: list[tuple[int, bytes]]) -> str:
        with RecordWriter(tmp_path / name) as writer:
            for label, body in rows:
                writer.write(label, body)
        return RecordFile(tmp_path / name).fingerprint

    rows = [(0, b"a"), (0, b"b"), (1, b"c")]
    changed = [[(0, b"b"), (0, b"a"), (1, b"c")], [(0, b"a"), (1, b"b"), (1, b"c")], [(0, b"a"), (0, b"b"), (1, b"d")]]
    prints = [fingerprint(f"{number}.rec", each) for number, each in enumerate([rows, *changed])]
    assert len(set(prints)) == 4
    assert fingerprint("again.rec", rows) == prints[0]
    assert len(prints[0]) == 64


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, b"a")], "image 0 has label 1 after label -1; write the images sorted by label"),
        ([(0, b"a"), (2, b"a")], "image 1 has label 2 after label 0"),
        ([(0, b"a"), (1, b"a"), (0, b"a")], "image 2 has label 0 after label 1"),
        ([(-1, b"a")], "image 0 has label -1"),
        ([(0, b"")], r"image 0 \(label 0\) is empty"),
        ([], "no images were written"),
    ],
)
def test_the_writer_refuses_and_leaves_nothing(tmp_path: Path, rows: list[tuple[int, bytes]], message: str) -> None:
    def write() -> None:
        with RecordWriter(tmp_path / "a.rec") as writer:
            for label, body in rows:
                writer.write(label, body)

    with pytest.raises(DataError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "a.rec")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def fail() -> None:
        with RecordWriter(tmp_path / "a.rec") as writer:
            writer.write(0, make_image(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert list(RecordFile(tmp_path / "a.rec")) == faces


def test_identity_names(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    with RecordWriter(path, identity_names=["Ada", "Émilie du Châtelet"]) as writer:
        writer.write(0, b"a")
        writer.write(1, b"b")
    assert RecordFile(path).identity_names == ("Ada", "Émilie du Châtelet")
    (tmp_path / "a.identities.txt").write_text("Ada\n")
    with pytest.raises(DataError, match=r"a\.identities\.txt: 1 names, but a\.rec has 2 identities"):
        _ = RecordFile(path).identity_names
    write_faces(path)  # without names: the old ones must not stay
    assert RecordFile(path).identity_names is None
    with pytest.raises(DataError, match=r"the identity name 'a.nb' is empty, or has"):
        RecordWriter(path, identity_names=["a\nb"])
    with pytest.raises(DataError, match=r"must end in \.rec"):
        RecordWriter(tmp_path / "a.bin")


@pytest.mark.real
@pytest.mark.parametrize("name", ["faceid25-testing", "faceid25-validation"])
def test_genuine_files(real_data: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    source = real_data / "recordio"
    listed = {}
    for line in (source / f"{name}.lst").read_text().splitlines():
        key, label, _ = line.split("\t")
        listed[int(key)] = int(float(label))
    caplog.set_level(logging.WARNING)
    file = RecordFile(source / f"{name}.rec")
    assert file.keys.tolist() == sorted(listed)
    assert [label for _, label in file] == [listed[key] for key in sorted(listed)]
    assert all(encoded.startswith(b"\xff\xd8\xff") for encoded, _ in file)
    assert file.num_identities == max(listed.values()) + 1
    (tmp_path / "a.rec").symlink_to(source / f"{name}.rec")
    scanned = RecordFile(tmp_path / "a.rec")
    assert scanned.fingerprint == file.fingerprint
    assert np.array_equal(scanned._offsets, file._offsets)
    assert caplog.text == ""


def _ranged_rows(labels: Sequence[int], ranges: Sequence[tuple[float, float]]) -> list[Row]:
    """A header, an image for each label, and an identity record for each range of keys."""
    num_images = len(labels)
    images: list[Row] = [(key, (float(label),), b"x" * key) for key, label in enumerate(labels, start=1)]
    records: list[Row] = [(num_images + place, pair, b"") for place, pair in enumerate(ranges, start=1)]
    return [(0, (num_images + 1.0, num_images + 1.0 + len(ranges)), b""), *images, *records]


@pytest.mark.parametrize(
    ("labels", "ranges", "is_by_range"),
    [
        ([0, 0, 1, 2, 2, 2], [(1, 3), (3, 4), (4, 7)], True),
        ([0, 0, 2, 2], [(1, 3), (3, 3), (3, 5)], True),  # an identity without images
        ([1, 1, 0, 0], [(1, 3), (3, 5)], False),  # records in another order than labels
        ([0, 1, 0, 1], [(1, 3), (3, 5)], False),  # images that are not sorted
        ([0, 0, 1, 1], [(1, 3), (4, 5)], False),  # ranges with a hole
        ([0, 0, 1, 1], [(1, 2.5), (2.5, 5)], False),
        ([0, 0, 1, 1], [(1, 3), (3, 4)], False),  # ranges that end early
    ],
)
def test_labels_by_identity_records(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: list[int],
    ranges: list[tuple[float, float]],
    is_by_range: bool,
) -> None:
    path = _write_rows(tmp_path / "a.rec", _ranged_rows(labels, ranges))
    found = RecordFile(path)._labels_of_identities()
    assert (found is not None) == is_by_range
    assert RecordFile(path).labels.tolist() == labels
    assert RecordFile(path)._labels_of_heads().tolist() == labels
    monkeypatch.setattr("gkd.data.record_labels._FLOAT32_EXACT", len(labels))
    assert RecordFile(path)._labels_of_identities() is None


@pytest.mark.parametrize("block", [1, 100, 1 << 22])
@pytest.mark.parametrize("long", [1, 1 << 16])
def test_heads_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, long: int) -> None:
    monkeypatch.setattr("gkd.data.record_labels._BLOCK_BYTES", block)
    monkeypatch.setattr("gkd.data.record_labels._LONG_RECORD", long)
    keys = np.random.default_rng(0).permutation(50).tolist()
    # Some hold the magic, which cuts them into parts; some have several labels; the last is as short as can be.
    bodies = [MAGIC * (key % 3 == 0) + b"y" * (key % 7 * 30 + 1) for key in keys]
    rows: list[Row] = [
        (key, (float(key), 7.0) if key % 2 else (float(key),), body) for key, body in zip(keys, bodies, strict=True)
    ]
    file = RecordFile(_write_rows(tmp_path / "a.rec", [*rows, (50, (3.0,), b"z")]))
    assert file.labels.tolist() == [*range(50), 3]
    assert [label for _, label in file] == [*range(50), 3]
    assert [body for body, _ in file] == [*(bodies[keys.index(key)] for key in range(50)), b"z"]


@pytest.mark.parametrize("last", [(1 << 24) + 1, (1 << 24) + 2, 42_474_557, 42_474_559])
def test_counts_that_are_rounded_down(tmp_path: Path, last: int) -> None:
    rows = _big_rows(last)
    rounded = float(np.float32(last + 1))
    if rounded > last + 1:
        rounded = float(np.nextafter(np.float32(rounded), np.float32(0)))
    rows[0] = (0, (rounded, float(last + 3)), b"")
    file = RecordFile(_write_rows(tmp_path / "a.rec", rows))
    assert file.keys.tolist() == [last - 2, last - 1, last]
    assert len(file._identity_offsets) == 2


def test_telling_what_is_needed_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = write_faces(tmp_path / "a.rec")
    file, told = RecordFile(tmp_path / "a.rec"), []
    monkeypatch.setattr("os.posix_fadvise", lambda _, start, length, advice: told.append((start, length)))
    wanted = np.array([7, 3, 19, 500, -1])
    file.will_need(wanted)
    assert told == []  # just written, so it is in memory
    monkeypatch.setattr(file._reader, "_is_in_memory", lambda _: False)
    file.will_need(wanted)
    assert told == [(int(file._offsets[i]), int(file._next_offsets[i] - file._offsets[i])) for i in (3, 7, 19)]
    assert file[7] == faces[7]


def test_a_file_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    write_faces(path)
    file = RecordFile(path)
    with path.open("r+b") as content:
        content.truncate(int(file._offsets[10]) + 20)
    assert file[9][1] == 1
    for index in (10, 11):
        with pytest.raises(DataError, match=rf"a\.rec: key {index + 1}, byte .*(became shorter|past the end)"):
            file[index]
    with pytest.raises(DataError, match=r"a\.rec: key 11, byte"):
        file._labels_of_heads()


def test_a_damaged_length_never_gives_another_image(tmp_path: Path) -> None:
    """Each bit of the first 8 bytes of every record flipped, with the .idx, which does not show where a record ends."""
    path = tmp_path / "a.rec"
    faces = write_faces(path, 8, 4)
    content = path.read_bytes()
    for offset in [int(line.split("\t")[1]) for line in path.with_suffix(".idx").read_text().splitlines()[1:9]]:
        for byte, bit in itertools.product(range(8), range(8)):
            damaged = bytearray(content)
            damaged[offset + byte] ^= 1 << bit
            path.write_bytes(damaged)
            assert [
                found for index in range(8) if (found := _read_or_none(path, index)) not in (None, faces[index])
            ] == []


def _read_or_none(path: Path, index: int) -> tuple[bytes, int] | None:
    try:
        return RecordFile(path)[index]
    except DataError:
        return None


def test_a_length_that_is_too_long_by_whole_records_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    write_faces(path, 4, 2)
    offsets = [int(line.split("\t")[1]) for line in path.with_suffix(".idx").read_text().splitlines()]
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, offsets[1] + 4, offsets[3] - offsets[1] - 8)
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"key 1, byte {offsets[1]}: .* the length is damaged"):
        RecordFile(path)[0]
