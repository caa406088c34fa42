"""Files that grow while a run goes on, and the records that TensorBoard reads.

A full disk or a folder that has become read-only must not end a run of days for the sake of its log. So a record that
cannot be written waits in memory and is tried again with the next one, and what was half written is cut off again.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000


class AppendFile:
    """A file that grows by whole records. Only opening it raises; later failures are warned of once and counted.

    Attributes:
        num_failures: how often a write has failed.
        num_lost: records given up because more than `max_waiting` were waiting, or because the file was closed.

    Args:
        path: made where it is missing.
        max_waiting: records that are kept in memory while writing fails; the oldest go first.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, *, max_waiting: int = MAX_WAITING) -> None:
        self.path = path
        self.num_failures = 0
        self.num_lost = 0
        self._max_waiting = max_waiting
        self._waiting: deque[bytes] = deque()
        self._descriptor: int | None = _open(path)
        self._size = os.fstat(self._descriptor).st_size
        self._has_warned = False

    def append(self, record: bytes) -> None:
        """Write `record` behind those that wait, or let it wait too."""
        self._waiting.append(record)
        try:
            self._write_waiting()
        except OSError as error:
            self._put_off(error)
        else:
            self._tell_recovery()

    def close(self) -> None:
        """Try a last time to write what waits, then close."""
        if self._waiting:
            with suppress(OSError):
                self._write_waiting()
        if self._waiting:
            self.num_lost += len(self._waiting)
            logger.warning("%s: closed with %d records that could not be written", self.path, len(self._waiting))
            self._waiting.clear()
        self._drop_descriptor()

    def _write_waiting(self) -> None:
        if self._descriptor is None:
            self._descriptor = _open(self.path)
            # Less than what was there: another file has taken its place, which is not ours to stretch.
            self._size = min(self._size, os.fstat(self._descriptor).st_size)
            os.ftruncate(self._descriptor, self._size)
        while self._waiting:
            _write_whole(self._descriptor, self._waiting[0])
            self._size += len(self._waiting.popleft())

    def _put_off(self, error: OSError) -> None:
        self.num_failures += 1
        if self._descriptor is not None:
            with suppress(OSError):  # where not even this works, it is done when the file is opened again
                os.ftruncate(self._descriptor, self._size)
        self._drop_descriptor()
        while len(self._waiting) > self._max_waiting:
            self._waiting.popleft()
            self.num_lost += 1
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: cannot be written (%s); training goes on, and what belongs there is kept in memory (at most %d "
                "records) until it can be: free some space, or make the folder writable again",
                self.path,
                error.strerror or error,
                self._max_waiting,
            )

    def _tell_recovery(self) -> None:
        if self._has_warned:
            self._has_warned = False
            logger.warning(
                "%s: can be written again after %d failures; %d records were lost",
                self.path,
                self.num_failures,
                self.num_lost,
            )

    def _drop_descriptor(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # some file systems report a failed write only here; it is counted already
                os.close(self._descriptor)
            self._descriptor = None


class EventFile:
    """A TensorBoard event file. Every point is in the file once `add` returns, so that a kill loses none.

    Source: the TFRecord framing (length, masked CRC-32C of it, data, masked CRC-32C) and `brain.Event:2` events.

    Args:
        folder: where TensorBoard looks; made where it is missing.
        purge_step: points of this and later steps in older files of the folder are hidden; None hides none.

    Raises:
        OSError: the folder or the file cannot be made.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{socket.gethostname()}.{os.getpid()}"
        self.file = AppendFile(folder / name)
        self.file.append(_record(Event(wall_time=time.time(), file_version="brain.Event:2")))
        if purge_step is not None:
            start = Event(wall_time=time.time(), step=purge_step, session_log=SessionLog(status=SessionLog.START))
            self.file.append(_record(start))

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        """Add one point to the curve of every value."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.file.append(_record(Event(wall_time=wall_time, step=step, summary=Summary(value=points))))

    def add(self, step: int, summaries: Iterable[Summary.Value]) -> None:
        """Add summaries of any kind, each as a record of its own: pictures are large."""
        for summary in summaries:
            self.file.append(_record(Event(wall_time=time.time(), step=step, summary=Summary(value=[summary]))))

    def close(self, is_failed: bool = False) -> None:
        """Close the file."""
        self.file.close()


class LinesFile:
    """A file of JSON lines, one a record: its step, its time and its values.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.file = AppendFile(path)

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        """Add one line."""
        line: dict[str, Any] = {"step": step, "time": wall_time, **values}
        self.file.append((json.dumps(line) + "\n").encode())

    def close(self, is_failed: bool = False) -> None:
        """Close the file."""
        self.file.close()


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def _write_whole(descriptor: int, record: bytes) -> None:
    """Write all of `record`: a disk that is nearly full takes a part of it before it fails."""
    rest = memoryview(record)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _record(event: Event) -> bytes:
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, _checksum(length), data, _checksum(data)))


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
