"""What a check finds: faults, each with its kind and place, counted and listed."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.core.files import atomic_write

_MAX_KEPT_OF_A_KIND = 100_000


@dataclass(frozen=True)
class Fault:
    """One finding.

    Attributes:
        kind: what sort it is, one word.
        what: the message, without its place.
        place: where it is, ending the file's name: " key 5 at byte 1204", "/person/photo.jpg" in a folder, or nothing
            where it is of the whole file.
        key: the record's key, where there is one.
        start: the first byte that it concerns.
        end: the byte after the last that it concerns.
        is_warning: whether training on the file is right all the same.
    """

    kind: str
    what: str
    place: str = ""
    key: int | None = None
    start: int | None = None
    end: int | None = None
    is_warning: bool = False


class Faults:
    """The findings of one check. Of each kind all are counted, and the first 100,000 kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.warning_counts: Counter[str] = Counter()
        self._kept: dict[tuple[str, bool], list[Fault]] = {}

    def add(self, kind: str, what: str, place: str = "", **details: Any) -> None:
        """Add a finding; `details` are the other attributes of `Fault`."""
        fault = Fault(kind, what, place, **details)
        (self.warning_counts if fault.is_warning else self.counts)[kind] += 1
        kept = self._kept.setdefault((kind, fault.is_warning), [])
        if len(kept) < _MAX_KEPT_OF_A_KIND:
            kept.append(fault)

    def add_record(self, kind: str, key: int, offset: int, what: str, *, is_warning: bool = False) -> None:
        """Add a finding of one record."""
        self.add(kind, what, f" key {key} at byte {offset}", key=key, start=offset, is_warning=is_warning)

    def __iter__(self) -> Iterator[Fault]:
        """The kept ones, faults before warnings, each kind together."""
        for kind, is_warning in sorted(self._kept, key=lambda name: (name[1], name[0])):
            yield from self._kept[kind, is_warning]

    @property
    def is_clean(self) -> bool:
        """Whether there are no faults; warnings do not count."""
        return not self.counts

    def line(self, fault: Fault) -> str:
        """The finding on one line: file, place, what, kind."""
        level = "warning" if fault.is_warning else "fault"
        where = f"{self.path}{fault.place}" if fault.place.startswith("/") else f"{self.path}:{fault.place}"
        return f"{where.removesuffix(':')}: {fault.what} [{level}: {fault.kind}]"

    def lines(self, max_of_a_kind: int = 20) -> Iterator[str]:
        """One line for each finding, at most so many of a kind, then how many more there are."""
        for name, kept in sorted(self._kept.items(), key=lambda item: (item[0][1], item[0][0])):
            yield from (self.line(fault) for fault in kept[:max_of_a_kind])
            total = (self.warning_counts if name[1] else self.counts)[name[0]]
            if total > max_of_a_kind:
                yield f"{self.path}: … and {total - max_of_a_kind:,} more of kind {name[0]}"

    def summary(self) -> str:
        """The counts by kind, on one line."""
        parts = [f"{count:,} {kind}" for kind, count in sorted(self.counts.items())]
        parts += [f"{count:,} {kind} (warning)" for kind, count in sorted(self.warning_counts.items())]
        return ", ".join(parts) or "no faults"

    def write_csv(self, path: str | Path) -> None:
        """Write the kept findings as a table of level, kind, key, start byte, end byte, place and message."""
        with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["level", "kind", "key", "start_byte", "end_byte", "place", "what"])
            for fault in self:
                level = "warning" if fault.is_warning else "fault"
                row = [level, fault.kind, fault.key, fault.start, fault.end, fault.place.strip(), fault.what]
                table.writerow(["" if value is None else value for value in row])
