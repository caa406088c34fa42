"""Files that are read piece by piece, never past a size and never with more memory than they have bytes left."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from gkd.core.errors import DataError


@contextmanager
def open_bounded(path: Path, max_bytes: int) -> Iterator[BinaryIO]:
    """A regular file of at most `max_bytes`, to be read from its beginning.

    Unlike a plain file's, a read of more bytes than are left takes no memory for them: a damaged file may ask for any
    number.

    Raises:
        DataError: the file is missing, is not a regular file, cannot be opened, or is larger.
    """
    _require_regular(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise DataError(
                f"{path}: {size:,} bytes is more than the {max_bytes:,} bytes allowed for this kind of file"
            )
        yield cast(BinaryIO, _Stream(file, size))


class _Stream:
    """The three ways in which an unpickler reads."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        return self._taken(self._file.read(self._left if size < 0 else min(size, self._left)))

    def readline(self) -> bytes:
        return self._taken(self._file.readline(self._left))

    def readinto(self, buffer: bytearray) -> int:
        num_read = self._file.readinto(memoryview(buffer)[: self._left])
        self._left -= num_read
        return num_read

    def _taken(self, content: bytes) -> bytes:
        self._left -= len(content)
        return content


def _require_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise DataError(f"{path}: {reason}") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path}: is a folder, but a file is needed")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is not a regular file")
