"""One run: its folder read into plain values. What cannot be read is left empty and told in `notes`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.core.errors import GkdError
from gkd.core.yaml_lines import printable
from gkd.runs.config_leaves import read_leaves
from gkd.runs.metrics_file import Metrics, read_metrics_file
from gkd.runs.starts import Start, read_starts
from gkd.runs.state import State, judge

MAX_NAME_LENGTH = 100


@dataclass(frozen=True)
class Run:
    """A run as its files tell it.

    Attributes:
        name: the end of its path, long enough to differ from that of the others.
        config: the leaves of its config.
        starts: when and how it was started; never empty.
        notes: what was damaged or left out.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    starts: tuple[Start, ...]
    metrics: Metrics
    state: State
    notes: tuple[str, ...] = ()


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, with names that differ."""
    return [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]


def read_run(folder: Path, name: str | None = None, now: float | None = None) -> Run:
    """The run in `folder`, also while it is written; `now` is in seconds since 1970."""
    notes: list[str] = []
    config: dict[str, Any] = {}
    starts: list[Start] = []
    metrics = Metrics()
    try:
        config = read_leaves(folder / "config.yaml")
    except GkdError as error:
        notes.append(_within(folder, error))
    try:
        starts = read_starts(folder / "run.json")
    except GkdError as error:
        notes.append(_within(folder, error))
    try:
        metrics = read_metrics_file(folder / "metrics.jsonl")
    except OSError as error:
        notes.append(f"metrics.jsonl: cannot be read: {error.strerror}")
    notes += _metric_notes(metrics)
    state = judge(folder, config, metrics, time.time() if now is None else now)
    name = run_names([folder])[0] if name is None else name
    return Run(name, folder, config, tuple(starts) or (Start(),), metrics, state, tuple(notes))


def run_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path; of those that are equal, as many parts as tell them apart."""
    parts = [_absolute(folder).parts for folder in folders]
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(one[-length:]) for one, length in zip(parts, lengths, strict=True)]
        counts = Counter(names)
        longer = [
            length + (counts[name] > 1 and length < len(one))
            for one, length, name in zip(parts, lengths, names, strict=True)
        ]
        if longer == lengths:
            return [_cut_front(printable(name, 4096)) for name in names]
        lengths = longer


def _absolute(folder: Path) -> Path:
    return Path.cwd() / folder if folder.name not in ("", "..") else folder.resolve()


def _cut_front(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else "…" + name[1 - MAX_NAME_LENGTH :]


def _within(folder: Path, error: GkdError) -> str:
    """The message, with file names as seen from the run."""
    return printable(str(error).replace(f"{folder}/", ""), 300)


def _metric_notes(metrics: Metrics) -> list[str]:
    notes = []
    if metrics.num_damaged:
        lines = "line is" if metrics.num_damaged == 1 else "lines are"
        notes.append(f"metrics.jsonl: {metrics.num_damaged:,} damaged {lines} left out")
    if metrics.is_last_half:
        notes.append("metrics.jsonl: ends within a line, which is left out")
    if metrics.is_cut:
        notes.append("metrics.jsonl: is so large that only its beginning is read")
    if metrics.num_names_left_out:
        notes.append(f"metrics.jsonl: holds so many metrics that {metrics.num_names_left_out:,} are left out")
    infinite = [name for name, curve in metrics.curves.items() if len(curve.finite.steps) < len(curve.steps)]
    if infinite:
        shown = ", ".join(infinite[:3]) + (f" and {len(infinite) - 3} more" if len(infinite) > 3 else "")
        notes.append(f"values that are not finite in {shown}")
    return notes
