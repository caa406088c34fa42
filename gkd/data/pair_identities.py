"""Who is on the pairs of a verification set: a text beside the .bin, which itself only says same or different."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.files import atomic_write
from gkd.data.pair_lists import read_lfw_pairs
from gkd.data.text_lists import Faults, read_lines, shown

SUFFIX = ".persons.txt"

Names = tuple[int, str, str]


def identities_path(bin_path: Path) -> Path:
    """Where the persons on the pairs of a .bin are looked for: `lfw.persons.txt` beside `lfw.bin`."""
    return bin_path.with_name(bin_path.stem + SUFFIX)


def read_pair_identities(path: str | Path, is_same: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The persons on the two sides of each pair, as numbers.

    Args:
        path: a text of one line a pair in the order of the pairs, two names split by a tab; or the list that the set
            was made from in the format of LFW's `pairs.txt`, see `read_lfw_pairs`.
        is_same: (P,), whether each pair shows one person.

    Returns:
        (P, 2): equal numbers are one person. They are given in the order of the names.

    Raises:
        DataError: a file that cannot be read as such, another number of pairs, or names that contradict `is_same`; all
            wrong lines are named.
    """
    path = Path(path)
    names = _read_names(path)
    if len(names) != len(is_same):
        raise DataError(
            f"{path}: names the persons of {len(names):,} pairs, but the set has {len(is_same):,}; one line a pair is "
            "needed"
        )
    _require_agreement(path, names, is_same)
    codes = np.unique([[left, right] for _, left, right in names], return_inverse=True)[1]
    return codes.reshape(-1, 2).astype(np.int64)


def write_pair_identities(path: str | Path, names: Sequence[tuple[str, str]]) -> None:
    """Write what `read_pair_identities` reads.

    Args:
        names: of each pair, in their order.

    Raises:
        DataError: a name is empty, or holds a tab or the end of a line.
    """
    for index, pair in enumerate(names):
        for name in pair:
            if not fits_line(name):
                raise DataError(f"{path}: pair {index}: {shown(name)} is no name that fits on a line between tabs")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{left}\t{right}\n" for left, right in names), encoding="utf-8")


def fits_line(name: str) -> bool:
    """Whether a name can stand between tabs."""
    return name.splitlines() == [name] and name == name.strip() and not set(name) & set("\t\0")


def _read_names(path: Path) -> list[Names]:
    lines = read_lines(path)
    if any(_is_lfw_line(line) for _, line in lines[:2]):  # the first line may be a header of two numbers
        pairs = read_lfw_pairs(path).pairs
        return [(pair.line, pair.left.rpartition("/")[0], pair.right.rpartition("/")[0]) for pair in pairs]
    faults = Faults(path, "lines are wrong")
    names = []
    for number, line in lines:
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) == 2 and all(fields):
            names.append((number, fields[0], fields[1]))
        else:
            faults.add_line(number, f"{shown(line)}, but two names split by a tab are needed")
    faults.raise_any()
    return names


def _is_lfw_line(line: str) -> bool:
    """Whether this is `name n1 n2` or `name1 n1 name2 n2`."""
    fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
    return (len(fields) == 3 and fields[2].isdigit()) or (len(fields) == 4 and fields[3].isdigit())


def _require_agreement(path: Path, names: Sequence[Names], is_same: npt.NDArray[np.bool_]) -> None:
    faults = Faults(path, "lines contradict the set")
    for index, (number, left, right) in enumerate(names):
        if (left == right) != bool(is_same[index]):
            kind = "of one person" if is_same[index] else "of two persons"
            faults.add_line(number, f"{shown(left)} and {shown(right)}, but pair {index} of the set is {kind}")
    faults.raise_any()
