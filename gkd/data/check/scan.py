"""Finds every whole record of a .rec by its bytes alone, past any damage, without the .idx.

In a file as the format's rules make it, the magic stands at a multiple of 4 bytes only where a part begins: writers cut
payloads at it. So a record is taken where its length leads to the next magic. Where it does not, the walk goes on at
the next head that is followed by another head or by the end of the file, and what lies between is damage.

R records.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.progress import progress
from gkd.data.image_header import image_format, is_whole
from gkd.data.record_format import (
    FIRST,
    MAGIC,
    MAX_LENGTH,
    PART_HEAD,
    RECORD_HEAD,
    WHOLE,
    locate_parts,
    read_payload,
    unpack_record,
)

# 36 bytes a record. `body` is the body's length, or -1 where the payload is too short for what its head announces.
RECORD = np.dtype(
    [("offset", "<i8"), ("size", "<u4"), ("id", "<u8"), ("flag", "<u4"), ("label", "<f4"), ("second", "<f4")]
    + [("body", "<i4")]
)
_MAGIC_WORD = int.from_bytes(MAGIC, "little")
_WINDOW = 1 << 24
_SMALL_WINDOW = 1 << 16
_MIB = 1 << 20
_IMAGE_ENDS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}

Words = npt.NDArray[np.uint32]
Records = npt.NDArray[np.void]


class Damage(NamedTuple):
    """Bytes [start, end) that hold no whole record, and how that shows."""

    start: int
    end: int
    what: str


@dataclass
class Walk:
    """What a file holds: `records` (R,) of type RECORD in file order, and the damage between them.

    Attributes:
        size: the file's bytes.
        bad_padding: offsets of records whose padding is not zero.
    """

    size: int
    records: Records = field(default_factory=lambda: np.empty(0, RECORD))
    damages: list[Damage] = field(default_factory=list)
    bad_padding: list[int] = field(default_factory=list)


def walk(path: Path) -> Walk:
    """Walk through the file from byte 0.

    Raises:
        DataError: missing, empty, unreadable, or without a single whole record.
    """
    if not path.is_file():
        raise DataError(f"{path}: is not a file; a .rec file is needed" if path.exists() else f"{path}: no such file")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: is empty; get it again")
    try:
        with path.open("rb") as file:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    walker = _Walker(view, size)
    for _ in progress(walker.run(), "walking through the file", total=size // _MIB, unit="MiB"):
        pass
    if not walker.num_records:
        raise DataError(f"{path}: not a RecordIO file: no whole record is in it (begins with {view[:8]!r})")
    return Walk(size, np.concatenate(walker.chunks), walker.damages, walker.bad_padding)


class _Walker:
    """The walk's state. The system loads the mapped file's pages on touch and drops them under pressure."""

    def __init__(self, view: mmap.mmap, size: int) -> None:
        self._view = view
        self._size = size
        # The last bytes of a file whose size is no multiple of 4 belong to no whole record.
        self._words: Words = np.frombuffer(view, dtype="<u4", count=size // 4)
        self.chunks: list[Records] = []
        self.num_records = 0
        self.damages: list[Damage] = []
        self.bad_padding: list[int] = []

    def run(self) -> Iterator[int]:
        """Walk to the end, yielding once for each MiB that has been passed."""
        offset, window, passed = 0, _SMALL_WINDOW, 0
        while offset < self._size:
            rows = self._plain_run(offset, window)
            if len(rows):
                window = min(2 * window, _WINDOW)
            else:
                rows, window = self._one(offset), _SMALL_WINDOW
            if len(rows):
                self.chunks.append(rows)
                self.num_records += len(rows)
                offset = int(rows["offset"][-1]) + int(rows["size"][-1])
            else:
                offset = self.damages[-1].end
            yield from range(offset // _MIB - passed)
            passed = offset // _MIB

    def _plain_run(self, offset: int, window: int) -> Records:
        """The records from `offset` on, within so many bytes, that are one part each and lead to the next head."""
        first = offset // 4
        words = self._words[first : first + window // 4]
        heads = np.flatnonzero(words == _MAGIC_WORD).astype(np.int64) + first
        if not len(heads) or heads[0] != first:
            return np.empty(0, RECORD)
        if first + len(words) == len(self._words) and self._size % 4 == 0:
            heads = np.append(heads, len(self._words))  # the end of the file ends a record as a head does
        starts, ends = heads[:-1], heads[1:]
        head_words = self._words[np.minimum(starts + 1, len(self._words) - 1)]
        lengths = (head_words & MAX_LENGTH).astype(np.int64)
        is_plain = (head_words >> 29 == WHOLE) & (lengths >= RECORD_HEAD.size)
        is_plain &= starts + 2 + (lengths + 3) // 4 == ends
        is_plain &= self._begin_records(ends)
        num = len(is_plain) if is_plain.all() else int(np.argmin(is_plain))
        return self._rows(starts[:num], lengths[:num])

    def _begin_records(self, heads: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether a whole record or a first part begins there, or nothing that tells otherwise fits into the file."""
        is_inside = heads + 1 < len(self._words)
        kinds = self._words[np.minimum(heads + 1, len(self._words) - 1)] >> 29
        begins: npt.NDArray[np.bool_] = ~is_inside | (kinds == WHOLE) | (kinds == FIRST)
        return begins

    def _rows(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Records:
        at = np.minimum(starts[:, None] + np.arange(2, 10), len(self._words) - 1)
        words = np.ascontiguousarray(self._words[at])
        floats = words.view("<f4")
        rows = np.empty(len(starts), RECORD)
        rows["offset"], rows["flag"] = 4 * starts, words[:, 0]
        rows["size"] = 8 + (lengths + 3) // 4 * 4
        rows["id"] = words[:, 2].astype(np.uint64) | words[:, 3].astype(np.uint64) << np.uint64(32)
        body = lengths - RECORD_HEAD.size - 4 * words[:, 0].astype(np.int64)
        rows["body"] = np.maximum(body, -1)
        rows["label"] = np.where(words[:, 0] > 0, floats[:, 6], floats[:, 1])
        rows["second"] = np.where(words[:, 0] > 1, floats[:, 7], np.float32(0))
        self._note_padding(rows, lengths)
        return rows

    def _note_padding(self, rows: Records, lengths: npt.NDArray[np.int64]) -> None:
        last = self._words[(rows["offset"] + rows["size"].astype(np.int64)) // 4 - 1]
        used = (lengths % 4).astype(np.uint32)
        is_bad = (used > 0) & (last >> (8 * used) > 0)
        self.bad_padding += rows["offset"][is_bad].tolist()

    def _one(self, offset: int) -> Records:
        """The record at `offset`, looked at with all care, or none, its damage noted."""
        try:
            pieces, end = locate_parts(self._read, offset, self._size)
        except DataError as error:
            return self._skip(offset, str(error).removeprefix(f"byte {offset}: "))
        for start, length in pieces:
            inner = self._find_head(start, start + length)
            if inner is not None:
                return self._skip(offset, f"its length of {length} bytes leads past the record at byte {inner}")
        if any(length % 4 for _, length in pieces[:-1]):
            return self._skip(offset, "a part is cut where none can be")
        if not self._is_followed(end) and not self._is_complete(offset):
            return self._skip(offset, f"its length leads to byte {end}, where no record starts")
        return self._row(offset, pieces, end)

    def _skip(self, offset: int, what: str) -> Records:
        end = self._find_head(offset + 4, self._size)
        self.damages.append(Damage(offset, self._size if end is None else end, what))
        return np.empty(0, RECORD)

    def _row(self, offset: int, pieces: list[tuple[int, int]], end: int) -> Records:
        payload = read_payload(self._read, offset, self._size)
        row = np.zeros(1, RECORD)
        row["offset"], row["size"] = offset, end - offset
        try:
            record = unpack_record(payload)
            row["id"], row["flag"], row["body"] = record.key, record.flag, len(record.body)
            row["label"] = record.labels[0]
            row["second"] = record.labels[1] if len(record.labels) > 1 else 0.0
        except DataError:
            row["body"] = -1
        start, length = pieces[-1]
        if any(self._read(start + length, end - start - length)):
            self.bad_padding.append(offset)
        return row

    def _find_head(self, start: int, stop: int) -> int | None:
        """The first offset in [start, stop), a multiple of 4, where a believable record begins."""
        for low in range(start // 4, stop // 4, _WINDOW // 4):
            words = self._words[low : min(low + _WINDOW // 4, stop // 4)]
            for place in np.flatnonzero(words == _MAGIC_WORD):
                offset = 4 * (low + int(place))
                if offset >= start and self._is_believable(offset):
                    return offset
        return None

    def _is_believable(self, offset: int) -> bool:
        try:
            pieces, end = locate_parts(self._read, offset, self._size)
        except DataError:
            return False
        if sum(length for _, length in pieces) < RECORD_HEAD.size:
            return False
        return self._is_followed(end) or self._is_complete(offset)

    def _is_followed(self, end: int) -> bool:
        if end == self._size:
            return True
        head = self._read(end, PART_HEAD.size)
        if head[: len(MAGIC)] != MAGIC:
            return False
        return len(head) < PART_HEAD.size or PART_HEAD.unpack(head)[1] >> 29 in (WHOLE, FIRST)

    def _is_complete(self, offset: int) -> bool:
        """Whether the payload ends where its content says: an image with its end, or labels and nothing more."""
        try:
            record = unpack_record(read_payload(self._read, offset, self._size))
        except DataError:
            return False
        if not record.body:
            return record.flag > 0
        end = _IMAGE_ENDS.get(image_format(record.body) or "", b"")
        return is_whole(record.body) and record.body.endswith(end)

    def _read(self, offset: int, length: int) -> bytes:
        return self._view[offset : offset + length]
