"""The container's bytes, against the vectors and a slow reading of the format's rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkd.core.errors import DataError
from gkd.data.record_format import MAGIC, ReadAt, frame, pack_record, read_payload, split_at_magic, unpack_record

VECTORS = [
    (1, (5.0,), b"\xff\xd8\xff\xd9", "0a23d7ce1c000000000000000000a04001000000000000000000000000000000ffd8ffd9"),
    (0, (4.0, 6.0), b"", "0a23d7ce20000000020000000000000000000000000000000000000000000000000080400000c040"),
    (
        2,
        (1.0,),
        MAGIC + b"\x01",
        "0a23d7ce18000020000000000000803f020000000000000000000000000000000a23d7ce0100006001000000",
    ),
]


def _read_from(content: bytes) -> ReadAt:
    return lambda offset, length: content[offset : offset + length]


@pytest.mark.parametrize(("key", "labels", "body", "expected"), VECTORS)
def test_vectors_both_ways(key: int, labels: tuple[float, ...], body: bytes, expected: str) -> None:
    assert frame(pack_record(key, labels, body)).hex() == expected
    content = bytes.fromhex(expected)
    record = unpack_record(read_payload(_read_from(content), 0, len(content)))
    assert (record.key, record.labels, record.body) == (key, labels, body)


def _split_word_by_word(payload: bytes) -> list[bytes]:
    pieces, start = [], 0
    for at in range(0, len(payload) // 4 * 4, 4):
        if payload[at : at + 4] == MAGIC:
            pieces.append(payload[start:at])
            start = at + 4
    return [*pieces, payload[start:]]


_payloads = st.lists(st.sampled_from([MAGIC, MAGIC[:2], MAGIC[2:], MAGIC[:1], b"\0", b"ab", b"xyz1"])).map(b"".join)


@given(_payloads)
def test_payloads_that_hold_the_magic_come_back(payload: bytes) -> None:
    assert split_at_magic(payload) == _split_word_by_word(payload)
    content = b"\1" * 8 + frame(payload)
    assert len(content) % 4 == 0
    assert read_payload(_read_from(content), 8, len(content)) == payload


@given(_payloads.filter(bool), st.data())
def test_a_truncated_record_is_refused(payload: bytes, data: st.DataObject) -> None:
    content = frame(payload)
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    with pytest.raises(DataError, match="truncated"):
        read_payload(_read_from(cut), 0, len(cut))


@pytest.mark.parametrize("shift", range(4))
def test_only_aligned_magic_is_cut(shift: int) -> None:
    payload = bytes(shift) + MAGIC + b"tail"
    assert len(split_at_magic(payload)) == (2 if shift == 0 else 1)


def _part(kind: int, length: int = 0) -> bytes:
    return struct.pack("<4sI", MAGIC, kind << 29 | length) + bytes(-(-length // 4) * 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0" * 8, "byte 0: no record starts here"),
        (_part(2), "byte 0: a part of kind 2, where 0 or 1 must stand"),
        (_part(7), "byte 0: a part of kind 7"),
        (_part(1, 4) + _part(0, 4), "byte 12: a part of kind 0, where 2 or 3 must stand"),
        (_part(1, 4), "byte 12: the record starts past the end of the file"),
        (struct.pack("<4sI", MAGIC, 100), "byte 8: 100 bytes announced, but the file ends at 8"),
    ],
)
def test_damage_is_named_with_its_offset(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_payload(_read_from(content), 0, len(content))


def test_headers_that_are_too_short() -> None:
    with pytest.raises(DataError, match="fewer than its 24-byte header"):
        unpack_record(bytes(23))
    with pytest.raises(DataError, match="announces 4294967295 labels, but has only 24 bytes"):
        unpack_record(struct.pack("<IfQQ", 0xFFFFFFFF, 0, 0, 0))


def test_many_labels_keep_the_first_two_and_the_body() -> None:
    record = unpack_record(pack_record(3, (7.0, 0.5, 0.25, 0.125), b"body"))
    assert (record.flag, record.labels, record.body) == (4, (7.0, 0.5), b"body")
