"""Where the records of a .rec file lie: from its .idx, or by walking through the file."""

from __future__ import annotations

import logging
import mmap
import struct
import time
import warnings
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.files import GIB
from gkd.data.record_cache import Stamp, cache_path, load_arrays, save_arrays
from gkd.data.record_format import PART_HEAD, RECORD_HEAD, ReadAt, locate_parts, read_payload, unpack_record

Int64s = npt.NDArray[np.int64]

_log = logging.getLogger(__name__)
_MAX_IDX_BYTES = 4 * GIB
_CHUNK_BYTES = 1 << 24
_CHUNK = 1 << 20
_MAX_LINE_BYTES = 64
# Below this many records an index is read faster than a cache is worth a file.
_MIN_CACHED = 1 << 16


@dataclass(frozen=True)
class RecordIndex:
    """The records of a file, by ascending key.

    Attributes:
        keys: int64 (N,), or a range where each key is one more than the one before.
        offsets: int64 (N,), where each record starts, in bytes.
        last: the place of the record that lies last in the file.
    """

    keys: range | Int64s
    offsets: Int64s
    last: int

    def __len__(self) -> int:
        return len(self.offsets)

    def place_of(self, key: int) -> int:
        """The place of the first record whose key is `key` or more."""
        return bisect_left(self.keys, key)


def open_index(path: Path, file_size: int, stamp: Stamp) -> RecordIndex:
    """The index of the .rec file at `path`: from the cache beside it, else from its .idx, else by walking through it.

    Args:
        stamp: `stamp_of` the .rec and its .idx.

    Raises:
        DataError: as `read_idx` and `scan`.
    """
    cache = cache_path(path, "index")
    index = _load(cache, stamp)
    if index is not None:
        return index
    started = time.monotonic()
    idx = path.with_suffix(".idx")
    index = read_idx(idx, file_size) if idx.exists() else scan(path, file_size)
    if len(index) < _MIN_CACHED:
        return index
    seconds = time.monotonic() - started
    _log.info("%s: indexed %d records in %.1f s", path, len(index), seconds)
    # What was just written is mapped, so that processes share it from the first time on.
    return (_load(cache, stamp) if _save(cache, stamp, index) else None) or index


def read_idx(path: Path, file_size: int) -> RecordIndex:
    """The records that a text file of `key<TAB>offset` lines tells of, in any order.

    The file is read in pieces; beside the result, 8 bytes a record and 16 where keys are not consecutive, little memory
    is needed.

    Raises:
        DataError: not such lines, a key twice, a negative key, or an offset outside the .rec file.
    """
    keys, offsets = _read_columns(path)
    advice = "delete this file, and the .rec is indexed by walking through it"
    if len(offsets) == 0:
        raise DataError(f"{path}: lists no records; {advice}")
    if not isinstance(keys, range):
        keys, offsets = _sort(keys, offsets)
        repeated = _first_place(keys, lambda chunk: np.diff(chunk) == 0)
        if repeated is not None:
            raise DataError(f"{path}: key {keys[repeated]} stands there more than once; {advice}")
    outside = _first_place(offsets, lambda chunk: (chunk < 0) | (chunk > file_size - PART_HEAD.size))
    if outside is not None:
        raise DataError(
            f"{path}: key {keys[outside]} is said to be at byte {offsets[outside]}, outside the .rec file of "
            f"{file_size} bytes: that file is truncated, or the two do not belong together; get both again"
        )
    if keys[0] < 0:
        raise DataError(f"{path}: key {keys[0]} is negative; {advice}")
    return RecordIndex(keys, offsets, int(np.argmax(offsets)))


def scan(path: Path, file_size: int) -> RecordIndex:
    """The records found by walking through the file from one to the next.

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


def _load(cache: Path, stamp: Stamp) -> RecordIndex | None:
    arrays = load_arrays(cache, stamp)
    if arrays is None or set(arrays) != {"keys", "offsets", "last"} or len(arrays["last"]) != 1:
        return None
    stored, offsets, last = arrays["keys"], arrays["offsets"], int(arrays["last"][0])
    num_records = len(offsets)
    if not 0 <= last < num_records or len(stored) not in (1, num_records):
        return None
    if len(stored) == 1:
        first = int(stored[0])
        return RecordIndex(range(first, first + num_records), offsets, last) if 0 <= first < 1 << 62 else None
    is_ascending = stored[0] >= 0 and _first_place(stored, lambda chunk: np.diff(chunk) <= 0) is None
    return RecordIndex(stored, offsets, last) if is_ascending else None


def _save(cache: Path, stamp: Stamp, index: RecordIndex) -> bool:
    keys = np.array([index.keys[0]], dtype=np.int64) if isinstance(index.keys, range) else index.keys
    last = np.array([index.last], dtype=np.int64)
    return save_arrays(cache, stamp, {"keys": keys, "last": last, "offsets": index.offsets})


def _read_columns(path: Path) -> tuple[range | Int64s, Int64s]:
    with _open_idx(path) as file:
        num_lines = _count_lines(file)
        offsets = np.empty(num_lines, dtype=np.int64)
        keys, done = _Keys(num_lines), 0
        for text in _whole_lines(path, file):
            table = _parse_table(path, text)
            if done + len(table) > num_lines:
                raise DataError(f"{path}: changed while it was being read; try again when it is complete")
            offsets[done : done + len(table)] = table[:, 1]
            keys.append(table[:, 0])
            done += len(table)
    if done != num_lines:
        raise DataError(f"{path}: changed while it was being read; try again when it is complete")
    return keys.all(), offsets


@contextmanager
def _open_idx(path: Path) -> Iterator[BinaryIO]:
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file; move it away, and the .rec is indexed by walking through it")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size > _MAX_IDX_BYTES:
                raise DataError(f"{path}: {size:,} bytes is more than the {_MAX_IDX_BYTES:,} allowed for an index")
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _count_lines(file: BinaryIO) -> int:
    num_lines, ending = 0, b"\n"
    file.seek(0)
    while piece := file.read(_CHUNK_BYTES):
        num_lines += piece.count(b"\n")
        ending = piece[-1:]
    return num_lines + (ending != b"\n")


def _whole_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The content in pieces that end where a line does."""
    file.seek(0)
    rest = b""
    while piece := file.read(_CHUNK_BYTES):
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield rest + piece[:cut]
            rest = piece[cut:]
        else:
            rest += piece
        if len(rest) > max(_MAX_LINE_BYTES, _CHUNK_BYTES):
            raise DataError(f"{path}: not an index: every line must be a key, a tab and a byte offset")
    if rest:
        yield rest


class _Keys:
    """Keys as they come: as long as each is one more than the one before, only the first and the number are kept."""

    def __init__(self, num_lines: int) -> None:
        self._num_lines = num_lines
        self._consecutive = range(0)
        self._stored: Int64s | None = None
        self._length = 0

    def append(self, more: Int64s) -> None:
        if self._stored is None:
            first = self._consecutive.start if self._length else int(more[0])
            whole = range(first, first + self._length + len(more))
            if more[0] == first + self._length and more[-1] == whole[-1] and not np.any(np.diff(more) != 1):
                self._consecutive, self._length = whole, len(whole)
                return
            self._stored = np.empty(self._num_lines, dtype=np.int64)
            self._stored[: self._length] = np.arange(first, first + self._length) if self._length else 0
        self._stored[self._length : self._length + len(more)] = more
        self._length += len(more)

    def all(self) -> range | Int64s:
        return self._consecutive if self._stored is None else self._stored


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


def _sort(keys: Int64s, offsets: Int64s) -> tuple[Int64s, Int64s]:
    if _first_place(keys, lambda chunk: chunk[1:] < chunk[:-1]) is None:
        return keys, offsets
    order = np.argsort(keys, kind="stable")
    return keys[order], offsets[order]


def _first_place(values: Int64s, test: Callable[[Int64s], npt.NDArray[np.bool_]]) -> int | None:
    """The first place where `test` holds; it is given pieces that overlap by one, so that it may compare neighbours."""
    for start in range(0, len(values), _CHUNK):
        found = np.flatnonzero(test(values[start : start + _CHUNK + 1]))
        if len(found):
            return start + int(found[0])
    return None


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


def _order_by_id(path: Path, ids: npt.NDArray[np.uint64], offsets: Int64s) -> RecordIndex:
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    if len(ids) and (np.any(ordered[1:] == ordered[:-1]) or ordered[-1] > np.iinfo(np.int64).max):
        _log.warning("%s: no .idx beside it and its ids are not unique: keys are the order in the file", path)
        return RecordIndex(range(len(ids)), offsets, len(offsets) - 1)
    keys, offsets = ordered.astype(np.int64), offsets[order]
    first, last = int(keys[0]), int(keys[-1])
    is_consecutive = last - first == len(keys) - 1
    return RecordIndex(range(first, last + 1) if is_consecutive else keys, offsets, int(np.argmax(offsets)))
