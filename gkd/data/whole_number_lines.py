"""Text files of millions of lines, a block at a time: raw lines, and rows of whole numbers without a Python loop."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.data.text_lists import shown

_BLOCK_BYTES = 1 << 20
_MAX_LINE_BYTES = 4096
_MAX_DIGITS = 9  # so that a number fits into int32
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NEWLINE, _ZERO = 10, 48
_BLANKS = tuple(b" \t\r")

Rows = npt.NDArray[np.int32]
Lines = npt.NDArray[np.int64]


def text_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Every line of a file without its newline, and its number from 1.

    Raises:
        DataError: missing, unreadable, or a line of more than 4096 bytes.
    """
    for first, block in _blocks(Path(path)):
        for number, line in enumerate(block[:-1].split(b"\n"), start=first):
            if len(line) > _MAX_LINE_BYTES:
                raise _too_long(path, number)
            yield number, line


def read_number_rows(path: str | Path, num_columns: int, due: str) -> Iterator[tuple[Lines, Rows]]:
    """The rows of a file whose lines are each `num_columns` whole numbers of at most 9 digits, block by block.

    Numbers are parted by blanks, tabs or carriage returns; blank lines are left out.

    Args:
        due: what a line should be, for messages.

    Yields:
        The number of each row's line, and int32 (rows, num_columns).

    Raises:
        DataError: missing or unreadable, or the first line that is anything else.
    """
    for first, block in _blocks(Path(path)):
        rows = _parse(block, num_columns)
        if rows is not None:
            yield np.arange(first, first + len(rows)), rows
            continue
        numbers, rows = _parse_slowly(Path(path), first, block, num_columns, due)
        if len(rows):
            yield numbers, rows


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines, each ending in a newline, and the number of the first."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is not a regular file")
    first, rest = 1, b""
    try:
        with path.open("rb") as file:
            while content := file.read(_BLOCK_BYTES):
                content = rest + content
                if first == 1:
                    content = content.removeprefix(_BYTE_ORDER_MARK)
                cut = content.rfind(b"\n") + 1
                block, rest = content[:cut], content[cut:]
                if len(rest) > _MAX_LINE_BYTES:
                    raise _too_long(path, first + block.count(b"\n"))
                if block:
                    yield first, block
                    first += block.count(b"\n")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise DataError(f"{path}: {reason}") from error
    if rest:
        yield first, rest + b"\n"


def _too_long(path: str | Path, number: int) -> DataError:
    return DataError(f"{path}: line {number}: is longer than the {_MAX_LINE_BYTES:,} bytes allowed")


def _parse(block: bytes, num_columns: int) -> Rows | None:
    """The rows of a block, or None where it is anything but such rows.

    A number is a run of digits. Runs begin and end where the kind of byte changes, and a run's value is summed over its
    places: first the ones of all runs, then the tens of those that have them, and so on.
    """
    content = np.frombuffer(block, np.uint8)
    digits = content - np.uint8(_ZERO)
    is_digit = digits < 10
    is_newline = content == _NEWLINE
    num_blanks = sum(np.count_nonzero(content == blank) for blank in _BLANKS)
    if np.count_nonzero(is_digit) + np.count_nonzero(is_newline) + num_blanks < len(content):
        return None
    edges = np.flatnonzero(is_digit[1:] != is_digit[:-1]) + 1
    if is_digit[0]:
        edges = np.concatenate(([0], edges))
    starts, ends = edges[0::2], edges[1::2]
    newlines = np.flatnonzero(is_newline)
    if not _are_rows(starts, ends, newlines, num_columns):
        return None
    lengths = ends - starts
    if int(lengths.max()) > _MAX_DIGITS:
        return None
    return _values(digits, ends, lengths).reshape(-1, num_columns)


def _are_rows(
    starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp], newlines: npt.NDArray[np.intp], num_columns: int
) -> bool:
    """Whether every line has `num_columns` runs of digits."""
    if len(starts) != num_columns * len(newlines):
        return False
    is_ended = ends[num_columns - 1 :: num_columns] <= newlines
    is_begun = starts[num_columns::num_columns] > newlines[:-1]
    return bool(is_ended.all() and is_begun.all())


def _values(digits: npt.NDArray[np.uint8], ends: npt.NDArray[np.intp], lengths: npt.NDArray[np.intp]) -> Rows:
    values = digits[ends - 1].astype(np.int32)
    longer = np.arange(len(ends))
    for place in range(1, int(lengths.max())):
        longer = longer[lengths[longer] > place]
        values[longer] += digits[ends[longer] - 1 - place] * np.int32(10**place)
    return values


def _parse_slowly(path: Path, first: int, block: bytes, num_columns: int, due: str) -> tuple[Lines, Rows]:
    """As `_parse`, line by line: leaves out blank lines and tells what is wrong."""
    pattern = re.compile(rb"[ \t\r]*+" + rb"[ \t\r]++".join([rb"(\d{1,9}+)"] * num_columns) + rb"[ \t\r]*+")
    numbers, rows = [], []
    for number, line in enumerate(block[:-1].split(b"\n"), start=first):
        if not line.strip(b" \t\r"):
            continue
        match = pattern.fullmatch(line)
        if match is None:
            raise DataError(f"{path}: line {number}: is {shown(line.decode(errors='replace'))}, but {due} is due")
        numbers.append(number)
        rows.append([int(field) for field in match.groups()])
    return np.array(numbers, np.int64), np.array(rows, np.int32).reshape(-1, num_columns)
