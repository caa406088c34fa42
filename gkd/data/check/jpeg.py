"""What a JPEG's bytes tell without decoding: markers that stand where none may, and the quality it was saved at."""

from __future__ import annotations

import re
import struct
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_START_OF_SCAN, _END, _TABLES = 0xDA, 0xD9, 0xDB
_SEGMENTS_BETWEEN_SCANS = frozenset({0xC4, 0xDA, 0xDB, 0xDC, 0xDD, 0xFE, *range(0xE0, 0xF0)})
# Inside a scan FF is followed by 00 (it is data), by a restart marker D0-D7, or by another FF that fills.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

# ITU T.81 tables K.1 and K.2, in the order of rows.
_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)
_CHROMINANCE = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 " + "99 " * 32
)


class Quality(NamedTuple):
    """The IJG quality 1 … 100 whose tables are nearest, and whether they are exactly the image's."""

    value: int
    is_exact: bool


def scan_fault(encoded: bytes) -> str | None:
    """What is wrong with the markers of a JPEG, or None.

    Source: ITU T.81, B.1.1 (markers), B.2 (order of segments).
    """
    at = 2
    while True:
        if encoded[at : at + 1] != b"\xff":
            return f"no marker at its byte {at}, where a segment must begin"
        marker = encoded[at + 1] if at + 1 < len(encoded) else _END
        if marker == 0xFF:
            at += 1
            continue
        if marker == _END:
            return "it ends before its pixels"
        if at + 4 > len(encoded):
            return "it is cut short in its header"
        end = at + 2 + int(struct.unpack_from(">H", encoded, at + 2)[0])
        if marker == _START_OF_SCAN:
            return _entropy_fault(encoded, end)
        at = end


def jpeg_quality(encoded: bytes) -> Quality | None:
    """The quality that the quantisation tables stand for, or None where there are none to read.

    The IJG formula: s = 5000 / q for q < 50, else 200 - 2q; entry = clip(floor((base s + 50) / 100), 1, 255), base
    being table K.1 for luminance and K.2 for chrominance; "nearest" is in the sum of absolute differences.

    Source: ITU T.81, annex K; the Independent JPEG Group's `jpeg_quality_scaling`.
    """
    try:
        tables = _read_tables(encoded)
    except (struct.error, IndexError, ValueError):
        return None
    if 0 not in tables:
        return None
    distances = np.abs(_scaled(_LUMINANCE) - tables[0]).sum(1)
    if 1 in tables:
        distances = distances + np.abs(_scaled(_CHROMINANCE) - tables[1]).sum(1)
    best = int(np.argmin(distances))
    return Quality(best + 1, bool(distances[best] == 0))


def _entropy_fault(encoded: bytes, at: int) -> str | None:
    while (found := _MARKER.search(encoded, at)) is not None:
        marker, place = encoded[found.start() + 1], found.start()
        if marker == _END:
            return None
        if marker not in _SEGMENTS_BETWEEN_SCANS or place + 4 > len(encoded):
            return f"marker ff{marker:02x} stands among its pixels, at its byte {place}"
        at = place + 2 + int(struct.unpack_from(">H", encoded, place + 2)[0])
    return "the end of its pixels is missing"


def _read_tables(encoded: bytes) -> dict[int, npt.NDArray[np.float64]]:
    tables: dict[int, npt.NDArray[np.float64]] = {}
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF and encoded[at + 1] != _START_OF_SCAN:
        end = at + 2 + int(struct.unpack_from(">H", encoded, at + 2)[0])
        if encoded[at + 1] == _TABLES:
            segment = encoded[at + 4 : end]
            while segment:
                is_wide, number = segment[0] >> 4, segment[0] & 15
                values = np.frombuffer(segment, dtype=">u2" if is_wide else "u1", count=64, offset=1)
                tables[number] = np.empty(64)
                tables[number][_zigzag()] = values
                segment = segment[1 + values.nbytes :]
        at = end
    return tables


@cache
def _zigzag() -> npt.NDArray[np.int64]:
    """The place of each table entry: along the diagonals, upwards on even ones."""
    places = [(row, column) for row in range(8) for column in range(8)]
    places.sort(key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))
    return np.array([8 * row + column for row, column in places])


@cache
def _scaled(table: str) -> npt.NDArray[np.float64]:
    base = np.array(table.split(), dtype=np.float64)
    quality = np.arange(1, 101, dtype=np.float64)
    # The reference code divides whole numbers: 5000 / 3 is 1666.
    scale = np.where(quality < 50, np.floor(5000 / quality), 200 - 2 * quality)
    return np.clip(np.floor((base * scale[:, None] + 50) / 100), 1, 255)
