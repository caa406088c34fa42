"""`metrics.jsonl` of a run, read line by line, also while it is written: `{"step": 20, "time": ..., name: value, ...}`.

A step that comes again (a run that went on from an earlier checkpoint) replaces what was logged from there on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gkd.core.yaml_lines import printable

MAX_FILE_BYTES = 128 << 20
MAX_LINE_BYTES = 1 << 17
MAX_NAMES = 300
MAX_NAME_LENGTH = 120
MAX_VALUE = 1e100  # sums and axes of such values still fit in a float
MAX_STEP = 2**53  # what a page's script can count to

_NOT_METRICS = frozenset({"step", "time"})


@dataclass(frozen=True)
class Curve:
    """A metric over the optimiser steps: `steps` (P,) grow, `values` (P,) may be infinite or NaN."""

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    @property
    def finite(self) -> Curve:
        """The points whose value is finite."""
        is_finite = np.isfinite(self.values)
        return self if is_finite.all() else Curve(self.steps[is_finite], self.values[is_finite])


@dataclass(frozen=True)
class Metrics:
    """The curves of a run by name, and what was wrong with its file.

    Attributes:
        last_step: the last step that any line names, 0 where there is none.
        times: seconds since 1970 of the lines, in their order.
        num_damaged: lines that are no record of a step; the rest of them is read.
        is_last_half: the file ends within a line, which is being written or was cut off.
        is_cut: the file is larger than what is read.
        num_names_left_out: metrics beyond `MAX_NAMES`.
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)
    last_step: int = 0
    times: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    num_damaged: int = 0
    is_last_half: bool = False
    is_cut: bool = False
    num_names_left_out: int = 0


def read_metrics_file(path: Path) -> Metrics:
    """Read `path`; a file that is missing holds no lines.

    Raises:
        OSError: it is there and cannot be read.
    """
    reader = _Reader()
    if not path.exists():
        return reader.result()
    if not path.is_file():
        raise OSError(None, "is not a regular file", str(path))
    with path.open("rb") as file:
        for line, is_whole in _lines(file):
            reader.add(line, is_whole)
        reader.is_cut = file.tell() >= MAX_FILE_BYTES
    return reader.result()


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Each line and whether it is whole; of a line that is too long an empty one is given, whole as lines go."""
    while file.tell() < MAX_FILE_BYTES and (line := file.readline(MAX_LINE_BYTES)):
        is_long = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
        while is_long and len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
        yield (b"", True) if is_long else (line, line.endswith(b"\n"))


class _Reader:
    """Curves that grow line by line."""

    def __init__(self) -> None:
        self.points: dict[str, tuple[list[int], list[float]]] = {}
        self.times: list[tuple[int, float]] = []
        self.num_damaged = 0
        self.is_last_half = False
        self.is_cut = False
        self.left_out: set[str] = set()

    def add(self, line: bytes, is_whole: bool) -> None:
        record = _record(line)
        if record is not None:
            self._add_record(record)
        elif is_whole:
            self.num_damaged += 1
        else:
            self.is_last_half = True

    def _add_record(self, record: dict[str, Any]) -> None:
        step = record["step"]
        if self.times and step < self.times[-1][0]:
            self._go_back(step)
        seconds = _number(record.get("time"))
        self.times.append((step, math.nan if seconds is None else seconds))
        for name, value in record.items():
            number = _number(value)
            if name not in _NOT_METRICS and number is not None:
                self._add_point(name, step, number)

    def _add_point(self, name: str, step: int, value: float) -> None:
        found = self.points.get(name)
        if found is None:
            if len(self.points) < MAX_NAMES:
                self.points[name] = ([step], [value])
            elif len(self.left_out) < MAX_NAMES:
                self.left_out.add(name)
            return
        steps, values = found
        if steps and steps[-1] == step:
            values[-1] = value
            return
        steps.append(step)
        values.append(value)

    def _go_back(self, step: int) -> None:
        while self.times and self.times[-1][0] >= step:
            self.times.pop()
        for steps, values in self.points.values():
            while steps and steps[-1] >= step:
                steps.pop()
                values.pop()

    def result(self) -> Metrics:
        curves = {
            printable(name, MAX_NAME_LENGTH): Curve(np.array(steps, np.int64), np.array(values, np.float64))
            for name, (steps, values) in self.points.items()
            if steps
        }
        times = np.array([seconds for _, seconds in self.times if math.isfinite(seconds)], np.float64)
        last_step = self.times[-1][0] if self.times else 0
        return Metrics(curves, last_step, times, self.num_damaged, self.is_last_half, self.is_cut, len(self.left_out))


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None where it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    step = record.get("step")
    is_step = isinstance(step, int) and not isinstance(step, bool) and 0 <= step <= MAX_STEP
    return record if is_step else None


def _number(value: Any) -> float | None:
    """A figure as a float, infinite beyond `MAX_VALUE`; None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if abs(value) > MAX_VALUE:
        return math.inf if value > 0 else -math.inf
    return float(value)
