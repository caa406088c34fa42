"""A reader of .rec files as other projects have it, written from the format alone: the judge of our writer."""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = 0xCED7230A


def read_record(content: bytes, offset: int) -> bytes:
    """One payload, as dmlc's RecordIO reader joins it."""
    payload = b""
    while True:
        magic, word = struct.unpack_from("<II", content, offset)
        assert magic == MAGIC
        kind, length = word >> 29, word & ((1 << 29) - 1)
        payload += content[offset + 8 : offset + 8 + length]
        offset += 8 + (length + 3) // 4 * 4
        if kind in (0, 3):
            return payload
        payload += struct.pack("<I", MAGIC)


def unpack(payload: bytes) -> tuple[int, list[float], int, bytes]:
    """Flag, labels, id and body, as mxnet's recordio.unpack."""
    flag, label, key, _ = struct.unpack_from("<IfQQ", payload)
    body = payload[24:]
    if flag == 0:
        return flag, [label], key, body
    return flag, list(struct.unpack_from(f"<{flag}f", body)), key, body[4 * flag :]


def read_like_peers(path: Path) -> list[tuple[int, float, bytes]]:
    """Key, label and image of every record that a public training dataset takes for an image."""
    content = path.read_bytes()
    offsets = {}
    for line in path.with_suffix(".idx").read_text().splitlines():
        key, offset = line.split("\t")
        offsets[int(key)] = int(offset)
    flag, labels, _, _ = unpack(read_record(content, offsets[0]))
    keys = range(1, int(labels[0])) if flag > 0 else sorted(offsets)
    rows = []
    for key in keys:
        _, labels, found, body = unpack(read_record(content, offsets[key]))
        assert found == key
        rows.append((key, labels[0], body))
    return rows


def read_identities(path: Path) -> list[tuple[float, float]]:
    """The ranges of keys in the identity records, which the header counts."""
    content = path.read_bytes()
    offsets = dict(map(int, line.split("\t")) for line in path.with_suffix(".idx").read_text().splitlines())
    _, (first, stop), _, _ = unpack(read_record(content, offsets[0]))
    records = [unpack(read_record(content, offsets[key])) for key in range(int(first), int(stop))]
    assert all(flag == 2 and body == b"" for flag, _, _, body in records)
    return [(labels[0], labels[1]) for _, labels, _, _ in records]
