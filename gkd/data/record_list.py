"""The list of image files beside a .rec (.lst): `key<TAB>label<TAB>path` a line, as im2rec writes and reads it."""

from __future__ import annotations

import io
import os
import re
from array import array
from pathlib import Path

import numpy as np

from gkd.core.errors import DataError
from gkd.core.files import GIB, read_bounded
from gkd.data.record_index import Int64s

_MAX_LIST_BYTES = 8 * GIB
_MAX_NAME_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def list_path(path: Path) -> Path:
    """Where the list of a .rec file lies."""
    return path.with_suffix(".lst")


def list_line(key: int, label: int, source: str) -> bytes:
    """A line of the list. Names that are not UTF-8 are kept byte for byte."""
    return f"{key}\t{label:.6f}\t".encode("ascii") + os.fsencode(source) + b"\n"


def unsafe_name(name: str) -> str:
    """Why `name` cannot be that of one file or folder, or "" where it can."""
    if not name:
        return "is empty"
    if name.startswith("."):
        return "begins with a dot"
    if "/" in name or os.sep in name or (os.altsep and os.altsep in name):
        return "has a path separator"
    if _CONTROL.search(name):
        return "has a control character"
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        return f"is longer than {_MAX_NAME_BYTES} bytes"
    return ""


class ImageList:
    """The paths of a list, by ascending key. Kept are the file's bytes and 32 bytes an image.

    Attributes:
        path: the list.
        keys: int64 (N,), ascending.
        labels: float64 (N,), the first label of each line.

    Raises:
        DataError: missing, too large, or a line that is not `key<TAB>label<TAB>path`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._content = read_bounded(self.path, _MAX_LIST_BYTES)
        keys, labels, starts, ends = array("q"), array("d"), array("q"), array("q")
        position = 0
        for number, line in enumerate(io.BytesIO(self._content), start=1):
            key, label, length = self._parse(line, number)
            end = position + len(line.rstrip(b"\r\n"))
            keys.append(key)
            labels.append(label)
            starts.append(end - length)
            ends.append(end)
            position += len(line)
        numbers = np.frombuffer(keys, dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        self.keys: Int64s = numbers[order]
        self.labels = np.frombuffer(labels, dtype=np.float64)[order]
        self._starts: Int64s = np.frombuffer(starts, dtype=np.int64)[order]
        self._ends: Int64s = np.frombuffer(ends, dtype=np.int64)[order]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> str:
        """The path of the image with the `index`-th smallest key."""
        return os.fsdecode(self._content[int(self._starts[index]) : int(self._ends[index])])

    def check(self, keys: Int64s, labels: Int64s) -> None:
        """Make sure that the list is one of images with these keys and labels.

        Raises:
            DataError: it is not.
        """
        if not np.array_equal(self.keys, keys):
            raise DataError(f"{self.path}: lists {len(self)} images, and not those of the .rec ({len(keys)} images)")
        wrong = np.flatnonzero(self.labels != labels)
        if len(wrong):
            key, listed, label = keys[wrong[0]], self.labels[wrong[0]], labels[wrong[0]]
            raise DataError(f"{self.path}: key {key} has label {listed:g}, but {label} in the .rec")

    def _parse(self, line: bytes, number: int) -> tuple[int, float, int]:
        """Key, label, and the length of the path."""
        fields = line.rstrip(b"\r\n").split(b"\t")
        if len(fields) >= 3 and fields[0].isdigit() and len(fields[0]) < 19:
            try:
                return int(fields[0]), float(fields[1]), len(fields[-1])
            except ValueError:
                pass
        raise DataError(f"{self.path}: line {number} is not a key, a tab, a label, a tab and a path: {line[:60]!r}")
