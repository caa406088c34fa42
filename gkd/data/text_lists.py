"""Reads lists that people write, line by line, and gathers their mistakes so that all are told at once."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from gkd.core.errors import DataError
from gkd.core.files import read_bounded

_MAX_BYTES = 256 << 20
_MAX_LINE_CHARACTERS = 4096
_NUM_SHOWN = 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Faults:
    """The mistakes of one list.

    Args:
        where: the list's name, which begins the message.
        what: what is counted, such as "lines are wrong".
    """

    def __init__(self, where: str | Path, what: str = "mistakes") -> None:
        self._where = where
        self._what = what
        self._shown: list[str] = []
        self.count = 0

    def add(self, fault: str) -> None:
        """Remember a fault; the first ten are told in words."""
        self.count += 1
        if len(self._shown) < _NUM_SHOWN:
            self._shown.append(fault)

    def add_line(self, number: int, fault: str) -> None:
        """Remember a fault of line `number`."""
        self.add(f"line {number}: {fault}")

    def __str__(self) -> str:
        rest = [f"and {self.count - len(self._shown):,} more"] if self.count > len(self._shown) else []
        if self.count == 1:
            return f"{self._where}: {self._shown[0]}"
        return "\n  ".join([f"{self._where}: {self.count:,} {self._what}:", *self._shown, *rest])

    def raise_any(self) -> None:
        """Raise a DataError of all faults, where there are any."""
        if self.count:
            raise DataError(str(self))


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 text that are not blank, each with its number from 1.

    Raises:
        DataError: missing, too large, not UTF-8, a NUL, a line that is too long, or nothing but blank lines.
    """
    content = read_bounded(path, _MAX_BYTES).removeprefix(_BYTE_ORDER_MARK)
    nul = content.find(b"\0")
    if nul >= 0:
        raise DataError(f"{path}: line {content.count(10, 0, nul) + 1}: a NUL byte; this is no text file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(10, 0, error.start) + 1
        raise DataError(f"{path}: line {number}: is not UTF-8; save the file in that encoding") from error
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for number, line in lines:
        if len(line) > _MAX_LINE_CHARACTERS:
            raise DataError(
                f"{path}: line {number}: {len(line):,} characters are more than the {_MAX_LINE_CHARACTERS:,} allowed"
            )
    if not lines:
        raise DataError(f"{path}: is empty")
    return lines


def split_csv(line: str) -> list[str]:
    """The fields of one CSV line, without the blanks around them.

    Raises:
        ValueError: quotes that are not closed, or the like.
    """
    try:
        return [field.strip() for field in next(csv.reader([line], strict=True))]
    except csv.Error as error:
        raise ValueError(f"is no CSV line ({error})") from error


def inner_path(text: str) -> str:
    """A path that stays below the folder it is relative to, in its plain form.

    Raises:
        ValueError: empty, absolute, or climbing out with `..`.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{shown(text)} is no path below the folder; it must be relative and without `..`")
    return str(path)


def shown(text: str) -> str:
    """A piece of a hostile line, short and on one line."""
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
