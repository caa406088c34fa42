"""Where the records of a .rec file lie: from its .idx, or by walking through the file."""

from __future__ import annotations

import logging
import mmap
import struct
import warnings
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.files import GIB, read_bounded
from gkd.data.record_format import (
    MAX_LENGTH,
    PART_HEAD,
    RECORD_HEAD,
    WHOLE,
    ReadAt,
    locate_parts,
    read_payload,
    unpack_record,
)

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)
_MAX_IDX_BYTES = 4 * GIB
_CHUNK = 1 << 16


def read_idx(path: Path, file_size: int) -> tuple[Int64s, Int64s]:
    """Keys, ascending, and the byte offset of each record, from a text file of `key<TAB>offset` lines.

    Raises:
        DataError: not such lines, a key twice, a negative key, or an offset outside the .rec file.
    """
    table = _parse_table(path, read_bounded(path, _MAX_IDX_BYTES))
    order = np.argsort(table[:, 0], kind="stable")
    keys, offsets = table[order, 0], table[order, 1]
    advice = "delete this file, and the .rec is indexed by walking through it"
    if len(keys) == 0:
        raise DataError(f"{path}: lists no records; {advice}")
    repeated = np.flatnonzero(np.diff(keys) == 0)
    if len(repeated):
        raise DataError(f"{path}: key {keys[repeated[0]]} stands there more than once; {advice}")
    outside = np.flatnonzero((offsets < 0) | (offsets > file_size - PART_HEAD.size))
    if len(outside):
        key, offset = keys[outside[0]], offsets[outside[0]]
        raise DataError(
            f"{path}: key {key} is said to be at byte {offset}, outside the .rec file of {file_size} bytes: that file "
            "is truncated, or the two do not belong together; get both again"
        )
    if keys[0] < 0:
        raise DataError(f"{path}: key {keys[0]} is negative; {advice}")
    return keys, offsets


def scan(path: Path, file_size: int) -> tuple[Int64s, Int64s]:
    """Keys, ascending, and offsets, found by walking through the file from record to record.

    Keys are the ids in the records where no two are equal, else the order in the file.

    Raises:
        DataError: a damaged or truncated record, with its number and byte offset.
    """
    ids, offsets = array("Q"), array("q")
    with _map_file(path) as view:

        def read(offset: int, length: int) -> bytes:
            return view[offset : offset + length]

        offset = 0
        while offset < file_size:
            try:
                pieces, end = locate_parts(read, offset, file_size)
                ids.append(_record_id(view, read, pieces, offset, file_size))
            except DataError as error:
                raise DataError(f"{path}: record {len(offsets)}, {error}") from error
            offsets.append(offset)
            offset = end
    return _order_by_id(path, np.frombuffer(ids, dtype=np.uint64), np.frombuffer(offsets, dtype=np.int64))


def read_labels(path: Path, file_size: int, keys: Int64s, offsets: Int64s) -> npt.NDArray[np.float32]:
    """The first label of every record, from the heads of the records alone.

    Raises:
        DataError: a damaged record, with its key and byte offset.
    """
    labels = np.empty(len(offsets), dtype=np.float32)
    # Unmapped when the last reference goes; an explicit close fails while an error's traceback still holds one.
    content: Bytes = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    for start in range(0, len(offsets), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        labels[chunk], is_plain = _gather_labels(content, offsets[chunk])
        for index in np.flatnonzero(~is_plain) + start:
            labels[index] = _label_of(content, file_size, int(offsets[index]), f"{path}: key {keys[index]}")
    return labels


def _parse_table(path: Path, content: bytes) -> Int64s:
    lines = content.count(b"\n") + (not content.endswith(b"\n") and bool(content))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            numbers = np.fromstring(content.decode("ascii"), dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise DataError(f"{path}: not an index: every line must be a key, a tab and a byte offset") from error
    if len(numbers) != 2 * lines or content.count(b"\t") != lines:
        raise DataError(
            f"{path}: not an index: {lines} lines hold {len(numbers)} numbers, but each must be a key, a tab and "
            "a byte offset"
        )
    return numbers.reshape(-1, 2)


@contextmanager
def _map_file(path: Path) -> Iterator[mmap.mmap]:
    """The file's content as memory that the system loads on touch and drops under pressure."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


def _record_id(view: mmap.mmap, read: ReadAt, pieces: list[tuple[int, int]], offset: int, file_size: int) -> int:
    start, length = pieces[0]
    if length < RECORD_HEAD.size:
        # Too short, or cut inside its header; unpack_record tells which.
        return unpack_record(read_payload(read, offset, file_size)).key
    return int(struct.unpack_from("<Q", view, start + 8)[0])


def _order_by_id(path: Path, ids: npt.NDArray[np.uint64], offsets: Int64s) -> tuple[Int64s, Int64s]:
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    if len(ids) and (np.any(ordered[1:] == ordered[:-1]) or ordered[-1] > np.iinfo(np.int64).max):
        _log.warning("%s: no .idx beside it and its ids are not unique: keys are the order in the file", path)
        return np.arange(len(ids), dtype=np.int64), offsets
    return ordered.astype(np.int64), offsets[order]


def _gather_labels(content: Bytes, offsets: Int64s) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Labels, and where a record is one whole part with room for its head; only there the label is right."""
    needed = PART_HEAD.size + RECORD_HEAD.size + 4
    # At the end of the file a head may be cut; such rows are read from further up and marked.
    has_room = offsets + needed <= len(content)
    at = np.where(has_room, offsets, 0)[:, None]
    if len(content) < needed:
        return np.zeros(len(offsets), dtype=np.float32), np.zeros(len(offsets), dtype=np.bool_)
    heads = content[at + np.arange(needed)]
    words = heads.view("<u4")
    floats = heads.view("<f4")
    kind, length, flag = words[:, 1] >> 29, words[:, 1] & MAX_LENGTH, words[:, 2]
    is_plain = has_room & (words[:, 0] == 0xCED7230A) & (kind == WHOLE) & (length >= RECORD_HEAD.size + 4)
    is_plain &= offsets + length <= len(content)
    return np.where(flag == 0, floats[:, 3], floats[:, 8]), is_plain


def _label_of(content: Bytes, file_size: int, offset: int, where: str) -> float:
    def read(start: int, length: int) -> bytes:
        return content[start : start + length].tobytes()

    try:
        return unpack_record(read_payload(read, offset, file_size)).labels[0]
    except DataError as error:
        raise DataError(f"{where}, {error}") from error
