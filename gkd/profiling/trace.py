"""Reads the trace that the PyTorch profiler writes."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.core.errors import DataError

# Names of our own in a trace.
PREFIX = "gkd/"
STEP = PREFIX + "step"

ANNOTATION = "user_annotation"
OPERATOR = "cpu_op"
LAUNCHES = ("cuda_runtime", "cuda_driver")
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that took time: from `start` to `end` in microseconds, on a thread or a stream.

    sequence: the number of the node of the autograd graph that an operation made, or that was run. correlation: what a
    launch and its kernel have in common.
    """

    category: str
    name: str
    thread: str
    start: float
    end: float
    sequence: int | None = None
    correlation: int | None = None


def read_trace(path: Path) -> list[Event]:
    """The events of a gzipped Chrome trace in the order of their start, outer ones first.

    Raises:
        DataError: it is no trace.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            entries = json.load(file)["traceEvents"]
        events = [_event(entry) for entry in entries if entry.get("ph") == "X" and "dur" in entry]
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no trace of the PyTorch profiler ({error}); profile again") from error
    return sorted(events, key=lambda event: (event.start, -event.end))


def _event(entry: dict[str, Any]) -> Event:
    arguments, start = entry.get("args", {}), float(entry["ts"])
    return Event(
        str(entry.get("cat", "")),
        str(entry["name"]),
        f"{entry.get('pid')}/{entry.get('tid')}",
        start,
        start + float(entry["dur"]),
        arguments.get("Sequence number"),
        arguments.get("correlation"),
    )
