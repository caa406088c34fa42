"""Whether a run is finished, running or stopped, judged from its files alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gkd.runs.metrics_file import Metrics

Kind = Literal["finished", "running", "running?", "stopped", "not started"]

LOCKS = Path("/proc/locks")  # where Linux tells which files are locked, without touching them
# A run that has not logged for so long, in intervals between its lines and in seconds, is taken for stopped.
NUM_SILENT_INTERVALS = 5
MIN_SILENT_SECONDS = 120.0


@dataclass(frozen=True)
class State:
    """What a run is doing; `running?` is a guess from the age of its last line.

    `total_steps` is None where it cannot be told.
    """

    kind: Kind
    step: int
    total_steps: int | None

    def __str__(self) -> str:
        return f"stopped at {self.step:,}" if self.kind == "stopped" else self.kind

    @property
    def progress(self) -> str:
        """Steps done of all, such as `300/608`; of a finished run only one number."""
        if self.total_steps is None or self.total_steps == self.step:
            return f"{self.step:,}"
        return f"{self.step:,}/{self.total_steps:,}"


def judge(folder: Path, config: Mapping[str, Any], metrics: Metrics, now: float) -> State:
    """The state of the run in `folder` at `now` (seconds since 1970)."""
    total_steps, is_done = _length(config, metrics)
    return State(_kind(folder, metrics, now, is_done), metrics.last_step, total_steps)


def _kind(folder: Path, metrics: Metrics, now: float, is_done: bool) -> Kind:
    is_locked = is_file_locked(folder / ".lock")
    if is_locked:
        return "running"
    if is_done:
        return "finished"
    if len(metrics.times):
        return "running?" if now - metrics.times[-1] < _patience_seconds(metrics) else "stopped"
    return "stopped" if metrics.last_step else "not started"


def _length(config: Mapping[str, Any], metrics: Metrics) -> tuple[int | None, bool]:
    """The number of steps that the run is to have, and whether it has had them."""
    curve, epochs = metrics.curves.get("epoch"), config.get("train.epochs")
    if curve is None or not isinstance(epochs, int | float) or isinstance(epochs, bool):
        return None, False
    epoch, step = float(curve.values[-1]), int(curve.steps[-1])
    if not (np.isfinite(epoch) and epoch > 0 and 0 < epochs < 1e9):
        return None, False
    total_steps = step * (float(epochs) / epoch)
    if not total_steps < 2**53:
        return None, False
    return round(total_steps), round(total_steps) <= step


def _patience_seconds(metrics: Metrics) -> float:
    gaps = np.diff(metrics.times[-50:])
    return max(MIN_SILENT_SECONDS, NUM_SILENT_INTERVALS * float(np.median(gaps)) if len(gaps) else 0.0)


def is_file_locked(path: Path) -> bool:
    """Whether a process of this machine holds `path`; False where that cannot be told.

    Trying the lock would tell as well, but could keep a run from starting at that moment.
    """
    try:
        status = path.stat()
        text = LOCKS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any("FLOCK" in line and place in line.split() for line in text.splitlines())
