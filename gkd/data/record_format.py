"""The RecordIO container and the record header inside it, byte for byte.

A file is a row of parts: `magic u32 | kind << 29 | length u32 | payload | zero padding to 4 bytes`. A payload that
holds the magic at a multiple of 4 bytes is cut there into several parts, without those 4 bytes. A payload is a header
`flag u32 | label f32 | id u64 | id2 u64`, then `flag` float32 labels, then the body (an encoded image, or nothing).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gkd.core.errors import DataError

MAGIC = struct.pack("<I", 0xCED7230A)
PART_HEAD = struct.Struct("<4sI")
RECORD_HEAD = struct.Struct("<IfQQ")
MAX_LENGTH = (1 << 29) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)

# Reads `length` bytes at `offset`; fewer come back at the end of the file.
ReadAt = Callable[[int, int], bytes]


class Record(NamedTuple):
    """One unpacked payload. `labels` holds at most the first two: no more are in use."""

    flag: int
    labels: tuple[float, ...]
    key: int
    body: bytes


def pack_record(key: int, labels: Sequence[float], body: bytes) -> bytes:
    """A payload: one label goes into the header itself, more follow it."""
    if len(labels) == 1:
        return RECORD_HEAD.pack(0, labels[0], key, 0) + body
    return RECORD_HEAD.pack(len(labels), 0.0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + body


def unpack_record(payload: bytes) -> Record:
    """The parts of a payload.

    Raises:
        DataError: the payload is shorter than the header, or than the labels that the header announces.
    """
    if len(payload) < RECORD_HEAD.size:
        raise DataError(f"the record has {len(payload)} bytes, fewer than its {RECORD_HEAD.size}-byte header")
    flag, label, key, _ = RECORD_HEAD.unpack_from(payload)
    body_start = RECORD_HEAD.size + 4 * flag
    if body_start > len(payload):
        raise DataError(f"the record announces {flag} labels, but has only {len(payload)} bytes")
    labels = struct.unpack_from(f"<{min(flag, 2)}f", payload, RECORD_HEAD.size) if flag else (label,)
    return Record(flag, labels, key, payload[body_start:])


def frame(payload: bytes) -> bytes:
    """The payload as it stands in the file: one part, or several where it holds the magic.

    Raises:
        DataError: 2^29 bytes or more.
    """
    if len(payload) > MAX_LENGTH:
        raise DataError(f"a record of {len(payload):,} bytes is too long; the format allows {MAX_LENGTH:,}")
    pieces = split_at_magic(payload)
    last = len(pieces) - 1
    kinds = [WHOLE] if last == 0 else [FIRST, *[MIDDLE] * (last - 1), LAST]
    return b"".join(_part(kind, piece) for kind, piece in zip(kinds, pieces, strict=True))


def split_at_magic(payload: bytes) -> list[bytes]:
    """The pieces between the aligned occurrences of the magic, which themselves are left out."""
    pieces, start, found = [], 0, payload.find(MAGIC)
    while found >= 0:
        if found % 4:
            found = payload.find(MAGIC, found + 1)
            continue
        pieces.append(payload[start:found])
        start = found + 4
        found = payload.find(MAGIC, start)
    return [*pieces, payload[start:]]


def locate_parts(read: ReadAt, offset: int, file_size: int) -> tuple[list[tuple[int, int]], int]:
    """Where the payload's pieces of the record at `offset` lie, as (offset, length), and the record's end.

    Raises:
        DataError: no magic here, a part past the end of the file, or parts out of order; with the byte offset.
    """
    pieces: list[tuple[int, int]] = []
    while True:
        head = read(offset, PART_HEAD.size) if 0 <= offset <= file_size else b""
        if len(head) < PART_HEAD.size:
            raise DataError(f"byte {offset}: the record starts past the end of the file ({file_size} bytes): truncated")
        magic, word = PART_HEAD.unpack(head)
        if magic != MAGIC:
            raise DataError(f"byte {offset}: no record starts here (found {magic.hex()}, not the magic {MAGIC.hex()})")
        kind, length = word >> 29, word & MAX_LENGTH
        _check_kind(kind, is_first=not pieces, offset=offset)
        pieces.append((offset + PART_HEAD.size, length))
        offset += PART_HEAD.size + (length + 3 & ~3)
        if offset > file_size:
            start = pieces[-1][0]
            raise DataError(f"byte {start}: {length} bytes announced, but the file ends at {file_size}: truncated")
        if kind in (WHOLE, LAST):
            return pieces, offset


def read_payload(read: ReadAt, offset: int, file_size: int) -> bytes:
    """The payload of the record at `offset`, its pieces joined by the magic.

    Raises:
        DataError: as `locate_parts`, or the file became shorter.
    """
    pieces, _ = locate_parts(read, offset, file_size)
    payload = MAGIC.join([read(start, length) for start, length in pieces])
    if len(payload) != sum(length for _, length in pieces) + len(MAGIC) * (len(pieces) - 1):
        raise DataError(f"byte {offset}: the file became shorter while it was being read")
    return payload


def _part(kind: int, piece: bytes) -> bytes:
    return PART_HEAD.pack(MAGIC, kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4)


def _check_kind(kind: int, *, is_first: bool, offset: int) -> None:
    expected = (WHOLE, FIRST) if is_first else (MIDDLE, LAST)
    if kind not in expected:
        raise DataError(f"byte {offset}: a part of kind {kind}, where {expected[0]} or {expected[1]} must stand")
