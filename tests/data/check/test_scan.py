"""Walking through a .rec, damaged or not, against a slow walk from record to record."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data.check import scan
from gkd.data.record_format import MAGIC, frame, pack_record
from tests.data.check.damaged import Span, sample, small_jpeg


def _rows(walked: scan.Walk) -> list[tuple[int, int, int, int]]:
    records = walked.records
    return [tuple(int(row[name]) for name in ("offset", "size", "id", "body")) for row in records]  # type: ignore[misc]


def _expected(spans: list[Span]) -> list[tuple[int, int, int, int]]:
    return [(span.start, span.end - span.start, span.key, len(span.body)) for span in spans]


@pytest.mark.parametrize("window", [64, 4096, 1 << 24])
@pytest.mark.parametrize("has_header", [True, False])
def test_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, has_header: bool) -> None:
    monkeypatch.setattr(scan, "_WINDOW", window)
    monkeypatch.setattr(scan, "_SMALL_WINDOW", min(window, 256))
    whole = sample(has_header=has_header)
    walked = scan.walk(whole.write(tmp_path / "a.rec"))
    assert _rows(walked) == _expected(list(whole.spans))
    assert (walked.damages, walked.bad_padding, walked.size) == ([], [], len(whole.content))
    labels = [span.label for span in whole.images]
    assert walked.records["label"][walked.records["body"] > 0].tolist() == labels
    if has_header:
        assert (float(walked.records["label"][0]), float(walked.records["second"][0])) == (13.0, 17.0)
        assert walked.records["flag"][-1] == 2


def test_the_lengths_that_lie(tmp_path: Path) -> None:
    whole = sample()
    first, second, third = whole.spans[1:4]

    def walk_with_length(length: int) -> scan.Walk:
        content = bytearray(whole.content)
        struct.pack_into("<I", content, first.start + 4, length)
        return scan.walk(whole.write(tmp_path / "a.rec", bytes(content)))

    # It swallows its neighbour, and ends exactly where the third begins.
    walked = walk_with_length(third.start - first.start - 8)
    message = f"its length of {third.start - first.start - 8} bytes leads past the record at byte {second.start}"
    assert walked.damages == [scan.Damage(first.start, second.start, message)]
    assert _rows(walked)[1] == _expected([second])[0]
    # It ends too early, among its own bytes.
    walked = walk_with_length(40)
    message = f"its length leads to byte {first.start + 48}, where no record starts"
    assert walked.damages == [scan.Damage(first.start, second.start, message)]
    # It would end after the file.
    walked = walk_with_length((1 << 29) - 1)
    assert walked.damages[0][:2] == (first.start, second.start)
    assert "truncated" in walked.damages[0].what


def test_a_record_before_damage_is_whole(tmp_path: Path) -> None:
    whole = sample()
    content = bytearray(whole.content)
    content[whole.spans[3].start : whole.spans[3].start + 8] = bytes(8)
    walked = scan.walk(whole.write(tmp_path / "a.rec", bytes(content)))
    assert _rows(walked) == _expected([span for span in whole.spans if span.key != 3])
    assert [damage[:2] for damage in walked.damages] == [(whole.spans[3].start, whole.spans[3].end)]


def test_magic_that_a_writer_did_not_cut(tmp_path: Path) -> None:
    body = small_jpeg(1)
    body = body[:2] + b"\xff\xfe\x00\x0c" + bytes(2) + MAGIC + bytes(4) + body[2:]
    payload = pack_record(5, (1.0,), body)
    uncut = struct.pack("<4sI", MAGIC, len(payload)) + payload + bytes(-len(payload) % 4)
    (tmp_path / "a.rec").write_bytes(uncut + frame(pack_record(6, (1.0,), small_jpeg(2))))
    walked = scan.walk(tmp_path / "a.rec")
    assert walked.damages == []
    assert walked.records["id"].tolist() == [5, 6]
    assert walked.records["body"][0] == len(body)


def test_heads_that_announce_too_much(tmp_path: Path) -> None:
    payload = struct.pack("<IfQQ", 1 << 31, 0.0, 7, 0)
    (tmp_path / "a.rec").write_bytes(frame(payload) + frame(pack_record(8, (2.0, 3.0, 4.0), b"body")))
    walked = scan.walk(tmp_path / "a.rec")
    assert walked.records["body"].tolist() == [-1, 4]
    assert walked.records["flag"].tolist() == [1 << 31, 3]
    assert (walked.records["label"][1], walked.records["second"][1]) == (2.0, 3.0)


def test_padding_that_is_not_zero(tmp_path: Path) -> None:
    content = bytearray(frame(pack_record(1, (0.0,), b"abcde")) + frame(pack_record(2, (0.0,), b"abcdefgh")))
    content[37] = 9  # the last record before is of 29 bytes, so bytes 37 to 39 are padding
    (tmp_path / "a.rec").write_bytes(bytes(content))
    assert scan.walk(tmp_path / "a.rec").bad_padding == [0]


@pytest.mark.parametrize("content", [b"<html>no file</html>", MAGIC, MAGIC * 9, b"\0"])
def test_no_record_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.rec").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.rec: not a RecordIO file: no whole record is in it"):
        scan.walk(tmp_path / "a.rec")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        scan.walk(tmp_path / "none.rec")
    with pytest.raises(DataError, match="is not a file"):
        scan.walk(tmp_path)
    (tmp_path / "a.rec").touch()
    with pytest.raises(DataError, match="is empty"):
        scan.walk(tmp_path / "a.rec")


@pytest.mark.real
@pytest.mark.parametrize("name", ["faceid25-testing", "faceid25-validation"])
def test_genuine_files(real_data: Path, name: str) -> None:
    path = real_data / "recordio" / f"{name}.rec"
    walked = scan.walk(path)
    listed = np.loadtxt(path.with_suffix(".idx"), dtype=np.int64)
    assert np.array_equal(np.stack([walked.records["id"], walked.records["offset"]], 1).astype(np.int64), listed)
    assert (walked.damages, walked.bad_padding) == ([], [])
