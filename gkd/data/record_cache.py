"""Whole-number arrays kept in a file beside what they were worked out from, and mapped into memory when read.

The file is `magic | version u32 | header length u32 | CRC-32 of the header u32 | header (JSON) | arrays of int64`. The
header names the arrays, bears their checksum, and a stamp: sizes and times of change of the files that they describe.
Another stamp, another version or any damage means that there is no cache; nothing is ever repaired. A checksum is no
seal: the arrays may still hold anything, so whoever uses them checks their bounds.

All processes that map the file share its memory. A change of the described files that keeps both their sizes and their
times of change cannot be seen; so as not to miss an edit within one tick of a coarse clock, files that changed in the
last seconds are not cached.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import stat
import struct
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.files import atomic_write

Int64s = npt.NDArray[np.int64]
# Size and time of change (ns) of each file described; -1 and -1 for one that is missing.
Stamp = tuple[int, ...]

_log = logging.getLogger(__name__)
_MAGIC = b"gkdcache"
_VERSION = 1
_HEAD = struct.Struct("<8sIII")
_MAX_HEADER_BYTES = 1 << 16
_ALIGNMENT = 64
_PIECE_BYTES = 1 << 20
_SETTLED_NS = 2_000_000_000
_MAX_LENGTH = 1 << 40


def cache_path(rec: Path, kind: str) -> Path:
    """Where what is worked out from `rec` is kept: a hidden file beside it."""
    return rec.with_name(f".{rec.stem}.gkd-{kind}")


def stamp_of(*paths: Path) -> Stamp:
    """The sizes and times of change of files. Take it before reading them."""
    stamp: list[int] = []
    for path in paths:
        try:
            found = path.stat()
            stamp += [found.st_size, found.st_mtime_ns]
        except OSError:
            stamp += [-1, -1]
    return tuple(stamp)


def load_arrays(path: Path, stamp: Stamp) -> dict[str, Int64s] | None:
    """The arrays of the file at `path`, mapped and read-only; None where it is absent, damaged, or of another stamp."""
    try:
        # A FIFO or a link to somewhere else under this name must not be followed or waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            return _map_arrays(file, stamp)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
            _log.info("%s: not used, and made anew (%s)", path, error)
            return None


def save_arrays(path: Path, stamp: Stamp, arrays: Mapping[str, Int64s]) -> bool:
    """Write the arrays where that is possible, in one step for whoever reads; returns whether they are there now."""
    if max(stamp) > time.time_ns() - _SETTLED_NS:
        _log.info("%s: not written yet, since the files changed a moment ago", path)
        return False
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            _write_arrays(file, stamp, arrays)
    except (OSError, DataError) as error:
        _log.info("%s: cannot be written (%s); the same work is done at each start", path, error)
        return False
    return True


def _write_arrays(file: BinaryIO, stamp: Stamp, arrays: Mapping[str, Int64s]) -> None:
    lengths = [[name, len(array)] for name, array in arrays.items()]
    checksum = 0
    for array in arrays.values():
        checksum = zlib.crc32(np.ascontiguousarray(array, dtype="<i8").data, checksum)
    header = json.dumps({"stamp": stamp, "arrays": lengths, "checksum": checksum}).encode()
    header += b" " * (-(_HEAD.size + len(header)) % _ALIGNMENT)
    file.write(_HEAD.pack(_MAGIC, _VERSION, len(header), zlib.crc32(header)) + header)
    for array in arrays.values():
        file.write(np.ascontiguousarray(array, dtype="<i8").data)


def _map_arrays(file: BinaryIO, stamp: Stamp) -> dict[str, Int64s]:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no regular file")
    header = _read_header(file)
    if tuple(header["stamp"]) != stamp:
        raise ValueError("the files that it describes have changed")
    start, lengths = file.tell(), dict(header["arrays"])
    if not all(type(length) is int and 0 <= length < _MAX_LENGTH for length in lengths.values()):
        raise ValueError("its lengths are damaged")
    if start + 8 * sum(lengths.values()) != found.st_size:
        raise ValueError("it is cut short or too long")
    if header["checksum"] != _checksum_of_rest(file):
        raise ValueError("its arrays are damaged")
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, Int64s] = {}
    for name, length in lengths.items():
        arrays[name] = np.frombuffer(view, dtype="<i8", count=length, offset=start)
        start += 8 * length
    return arrays


def _checksum_of_rest(file: BinaryIO) -> int:
    checksum = 0
    while piece := file.read(_PIECE_BYTES):
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _read_header(file: BinaryIO) -> dict[str, Any]:
    magic, version, length, checksum = _HEAD.unpack(file.read(_HEAD.size))
    if magic != _MAGIC or version != _VERSION or length > _MAX_HEADER_BYTES:
        raise ValueError("of another kind or version")
    header = file.read(length)
    if zlib.crc32(header) != checksum:
        raise ValueError("its header is damaged")
    content = json.loads(header)
    if not isinstance(content, dict):
        raise ValueError("its header is damaged")
    return content
