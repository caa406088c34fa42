"""Reads records of a .rec file by their place in it, in any process."""

from __future__ import annotations

import os
import struct
import weakref
from pathlib import Path
from typing import Any

from gkd.core.errors import DataError
from gkd.data.record_format import MAGIC, Record, locate_parts, read_payload, split_at_magic, unpack_record
from gkd.data.record_index import Int64s

# magic, kind and length, flag, label, id, id2: the head of a record that is one part
_PLAIN_HEAD = struct.Struct("<4sIIfQQ")
_FIRST_LABEL = struct.Struct("<f")
_MAX_READ_AT_ONCE = 1 << 20
_NUM_MEMORY_PROBES = 8


class RecordReader:
    """An open .rec file.

    Attributes:
        path: the file.
        size: its bytes when it was opened.
        has_ids: whether records carry their keys, so that each can be checked.

    Raises:
        DataError: missing, no regular file, empty, or not a RecordIO file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = _size_of(path)
        self.has_ids = False
        self._descriptor: int | None = None

    def where(self, key: int, offset: int) -> str:
        """The file, a record's key and its byte offset, for messages."""
        return f"{self.path}: key {key} at byte {offset}"

    def read_at(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; fewer at the end of the file."""
        # pread keeps no position, so a descriptor may be shared with forked processes. Memory-mapped instead, a file
        # that is cut while it is read would end the process.
        return os.pread(self._open(), length, offset)

    def read(self, key: int, offset: int) -> Record:
        """The record of `key` at `offset`.

        Raises:
            DataError: it is damaged, cannot be read, or is not the one that the index names.
        """
        try:
            pieces, end = locate_parts(self.read_at, offset, self.size)
            self._require_end(offset, pieces, end)
            record = unpack_record(read_payload(self.read_at, offset, self.size))
        except DataError as error:
            raise DataError(f"{self.path}: key {key}, {error}") from error
        except OSError as error:
            raise DataError(f"{self.where(key, offset)}: cannot be read: {error.strerror}") from error
        if self.has_ids and record.key != key:
            raise DataError(
                f"{self.where(key, offset)}: the record there has id {record.key}; the .idx belongs to another file, "
                "delete it and the .rec is indexed by walking through it"
            )
        return record

    def _require_end(self, offset: int, pieces: list[tuple[int, int]], end: int) -> None:
        """Refuse a record whose length, or that of a part, cannot be right: it does not end where another starts."""
        start, length = pieces[-1]
        follower = self.read_at(end, len(MAGIC))
        is_overrun = any(len(split_at_magic(self.read_at(*piece))) > 1 for piece in pieces)
        if is_overrun or (follower and follower != MAGIC) or any(self.read_at(start + length, end - start - length)):
            raise DataError(
                f"byte {offset}: by its length the record ends at byte {end}, but it does not: the length is damaged; "
                "`prepare.py verify --repair` saves the other records"
            )

    def read_plain(self, key: int, start: int, length: int) -> tuple[bytes, float] | None:
        """The body and first label of a record of one part, in one read.

        None stands for all else, and for damage of any kind: `read` then takes the record as it is, or tells.

        Args:
            key: its key.
            start: where it starts, in bytes.
            length: how many bytes there are up to the next record.
        """
        if start < 0 or not _PLAIN_HEAD.size <= length <= _MAX_READ_AT_ONCE:
            return None
        try:
            content = os.pread(self._descriptor or self._open(), length, start)
        except OSError:
            return None  # reading it again tells what is wrong
        if len(content) < length:
            return None
        magic, word, flag, label, found, _ = _PLAIN_HEAD.unpack_from(content)
        body_start, body_end = _PLAIN_HEAD.size + 4 * flag, 8 + word
        # A word that is larger than the content stands for a part of another kind or a record that goes on.
        if magic != MAGIC or (word + 3 & ~3) + 8 != length or body_start > body_end:
            return None
        if (self.has_ids and found != key) or any(content[body_end:]):
            return None
        if flag:
            (label,) = _FIRST_LABEL.unpack_from(content, _PLAIN_HEAD.size)
        return content[body_start:body_end], label

    def will_need(self, starts: Int64s, ends: Int64s) -> None:
        """Tell the system which records are read next, so that it fetches them from the disk together.

        Where some of them show that the file is in memory already, nothing is done: it would only cost time.
        """
        is_sound = (starts >= 0) & (ends > starts) & (ends - starts <= _MAX_READ_AT_ONCE)
        starts, lengths = starts[is_sound], (ends - starts)[is_sound]
        if all(self._is_in_memory(start) for start in starts[:: len(starts) // _NUM_MEMORY_PROBES + 1].tolist()):
            return
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            os.posix_fadvise(self._open(), start, length, os.POSIX_FADV_WILLNEED)

    def _is_in_memory(self, offset: int) -> bool:
        try:
            return os.preadv(self._open(), [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except OSError:
            return False  # not there, or a file system that cannot tell

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


def _size_of(path: Path) -> int:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; a .rec file is needed")
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise DataError(f"{path}: is empty; get it again")
    if head != MAGIC:
        raise DataError(f"{path}: not a RecordIO file: at byte 0 it has {head!r}, not the magic {MAGIC.hex()}")
    return path.stat().st_size
