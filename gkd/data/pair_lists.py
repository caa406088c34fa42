"""Lists of verification pairs: the field's `pairs.txt`, and CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gkd.core.errors import DataError
from gkd.data.text_lists import Faults, inner_path, read_lines, shown, split_csv

_MAX_DIGITS = 6
_SAME = {"1": True, "true": True, "0": False, "false": False}
_CSV_NEEDED = ("left", "right", "is_same")
_CSV_COLUMNS = (*_CSV_NEEDED, "fold")


@dataclass(frozen=True)
class ListedPair:
    """One line: two images by their paths below the images' folder, without suffixes in a `pairs.txt`."""

    left: str
    right: str
    is_same: bool
    fold: int
    line: int


@dataclass(frozen=True)
class PairList:
    """The pairs of a list, ordered by fold.

    Attributes:
        path: the list.
        pairs: the pairs.
        has_suffixes: whether the images' paths end in their suffixes.
    """

    path: Path
    pairs: tuple[ListedPair, ...]
    has_suffixes: bool


def read_lfw_pairs(path: str | Path) -> PairList:
    """Read a list in the format of LFW's `pairs.txt`.

    The first line is `folds<TAB>n`: each fold has n lines `name n1 n2` and n lines `name1 n1 name2 n2`; image n of a
    person is `name/name_000n`. A first line with one number n means one such part (`pairsDevTest.txt`), and no first
    line of numbers means one part of as many lines as there are. One part has no folds, so its pairs of one person and
    of two are mixed evenly: any contiguous folds of them are balanced.

    Raises:
        DataError: a file that cannot be read as such; all wrong lines are named.
    """
    path = Path(path)
    lines = read_lines(path)
    header = _read_header(path, lines[0][1])
    if header is not None:
        lines = lines[1:]
        _require_count(path, lines, *header)
    folds, half = header or (1, 0)
    faults = Faults(path, "lines are wrong")
    pairs = [pair for place, line in enumerate(lines) if (pair := _read_lfw_line(faults, *line, place, half))]
    faults.raise_any()
    if header is not None:
        _require_halves(path, pairs, half)
    return PairList(path, tuple(pairs if folds > 1 else _mix(pairs)), has_suffixes=False)


def read_csv_pairs(path: str | Path) -> PairList:
    """Read a CSV list with the header `left,right,is_same` or `left,right,is_same,fold`, the columns in any order.

    Paths are relative to the images' folder; `is_same` is 1, 0, true or false; `fold` is a number from 0. Pairs come
    out by ascending fold, in the file's order within each.

    Raises:
        DataError: a file that cannot be read as such; all wrong lines are named.
    """
    path = Path(path)
    (_, header), *lines = read_lines(path)
    columns = _read_columns(path, header)
    if not lines:
        raise DataError(f"{path}: has a header, but no pairs")
    faults = Faults(path, "lines are wrong")
    pairs = []
    for number, line in lines:
        try:
            pairs.append(_read_csv_line(line, number, columns))
        except ValueError as error:
            faults.add_line(number, str(error))
    faults.raise_any()
    return PairList(path, tuple(sorted(pairs, key=lambda pair: pair.fold)), has_suffixes=True)


def _read_header(path: Path, line: str) -> tuple[int, int] | None:
    """(folds, pairs in each half of a fold), or None where the first line is a pair."""
    fields = line.split()
    if len(fields) > 2:
        return None
    numbers = [int(field) for field in fields if _is_number(field)]
    if len(numbers) < len(fields) or 0 in numbers:
        raise DataError(
            f"{path}: line 1: {shown(line)} is no header; write `folds<TAB>n` for n pairs of one person and n of two "
            "in each fold, or n alone"
        )
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def _require_count(path: Path, lines: Sequence[tuple[int, str]], folds: int, half: int) -> None:
    if len(lines) != 2 * half * folds:
        raise DataError(
            f"{path}: line 1: says {folds} x ({half} + {half}) = {2 * half * folds:,} pairs, but {len(lines):,} lines "
            "follow; the file is cut short, or its first line is wrong"
        )


def _read_lfw_line(faults: Faults, number: int, line: str, place: int, half: int) -> ListedPair | None:
    fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
    fold = place // (2 * half) if half else 0
    try:
        if len(fields) == 3:
            name, first, second = fields
            if first == second:
                raise ValueError(f"image {shown(first)} of {shown(name)} is paired with itself")
            return ListedPair(_lfw_image(name, first), _lfw_image(name, second), True, fold, number)
        if len(fields) == 4:
            if fields[0] == fields[2]:
                raise ValueError(f"{shown(fields[0])} twice; a pair of one person is `name n1 n2`")
            return ListedPair(_lfw_image(*fields[:2]), _lfw_image(*fields[2:]), False, fold, number)
        raise ValueError(f"{len(fields)} fields, but `name n1 n2` or `name1 n1 name2 n2` is needed")
    except ValueError as error:
        faults.add_line(number, str(error))
        return None


def _lfw_image(name: str, number: str) -> str:
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"{shown(name)} is no name of a person's folder")
    if not _is_number(number):
        raise ValueError(f"{shown(number)} is no number of an image, which has 1 to {_MAX_DIGITS} digits")
    return f"{name}/{name}_{int(number):04d}"


def _require_halves(path: Path, pairs: Sequence[ListedPair], half: int) -> None:
    num_same = Counter(pair.fold for pair in pairs if pair.is_same)
    for fold in range(pairs[-1].fold + 1):
        if num_same[fold] != half:
            raise DataError(
                f"{path}: fold {fold + 1} (from line {pairs[2 * half * fold].line}) has {num_same[fold]} pairs of one "
                f"person and {2 * half - num_same[fold]} of two, but the first line says {half} of each"
            )


def _mix(pairs: Sequence[ListedPair]) -> list[ListedPair]:
    """Both kinds evenly mixed, each in its order."""
    places: list[tuple[float, ListedPair]] = []
    for is_same in (True, False):
        kind = [pair for pair in pairs if pair.is_same == is_same]
        places += [((place + 0.5) / len(kind), pair) for place, pair in enumerate(kind)]
    return [replace(pair, fold=0) for _, pair in sorted(places, key=lambda item: item[0])]


def _read_columns(path: Path, header: str) -> list[str]:
    try:
        columns = [column.lower() for column in split_csv(header)]
    except ValueError as error:
        raise DataError(f"{path}: line 1: {error}") from error
    unknown = [column for column in columns if column not in _CSV_COLUMNS]
    missing = [column for column in _CSV_NEEDED if column not in columns]
    if unknown or missing or len(set(columns)) < len(columns):
        raise DataError(
            f"{path}: line 1: the header is {shown(header)}, but `left,right,is_same` or `left,right,is_same,fold` "
            "is needed"
        )
    return columns


def _read_csv_line(line: str, number: int, columns: Sequence[str]) -> ListedPair:
    fields = split_csv(line)
    if len(fields) != len(columns):
        raise ValueError(f"{len(fields)} fields, but the header has {len(columns)}")
    row = dict(zip(columns, fields, strict=True))
    left, right = inner_path(row["left"]), inner_path(row["right"])
    if left == right:
        raise ValueError(f"{shown(left)} is paired with itself")
    if row["is_same"].lower() not in _SAME:
        raise ValueError(f"is_same is {shown(row['is_same'])}, but 1, 0, true or false is needed")
    fold = row.get("fold", "0")
    if not _is_number(fold):
        raise ValueError(f"fold is {shown(fold)}, but a number of at most {_MAX_DIGITS} digits is needed")
    return ListedPair(left, right, _SAME[row["is_same"].lower()], int(fold), number)
