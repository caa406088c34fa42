"""Progress of a long task: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 30.0


def progress(items: Iterable[Item], what: str, *, total: int | None = None, unit: str = "images") -> Iterator[Item]:
    """Pass `items` on, showing how many have passed and the time left on standard error.

    Args:
        what: what is being done, such as "packing".
        total: how many there will be, where `items` has no length.
    """
    is_terminal = sys.stderr.isatty()
    with tqdm(
        items,
        desc=what,
        total=total,
        unit=f" {unit}",
        mininterval=0.2 if is_terminal else _SECONDS_BETWEEN_LINES,
        delay=0 if is_terminal else _SECONDS_BETWEEN_LINES,
        leave=False,
        dynamic_ncols=is_terminal,
    ) as bar:
        yield from bar
