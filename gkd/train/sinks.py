"""Where a run's figures go beside its own folder, and the thread that keeps a server's troubles away from training."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Protocol

from gkd.core.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
# A record that is refused so often is given up, so that one bad record cannot hold up all that follow.
MAX_TRIES = 8
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0

Record = tuple[int, dict[str, float], float]


class Sink(Protocol):
    """Somewhere that takes a run's figures."""

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        """Take `values`, reached after `step` steps, at `wall_time` in seconds since 1970."""

    def close(self, is_failed: bool) -> None:
        """Take no more; `is_failed` says that the run ended by an error."""


class BackgroundSink:
    """A sink on a server, opened and fed by a thread of its own: no step waits for it, and no failure of it is raised.

    What cannot be delivered waits, at most `max_waiting` records, and is tried again after a pause that doubles up to a
    minute. The first failure is warned of, and the recovery.

    Attributes:
        num_lost: records that were given up.

    Args:
        name: what the sink is called in the log.
        open_sink: connects; called by the thread, again where it failed.
        max_waiting: records kept while the server does not answer; the oldest go first.
        close_seconds: how long `close` waits for the rest to be delivered. A server that hangs is then left alone.
        first_pause_seconds: the first pause after a failure.
    """

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], Sink],
        *,
        max_waiting: int = MAX_WAITING,
        close_seconds: float = 30.0,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self.name = name
        self.num_lost = 0
        self._open = open_sink
        self._max_waiting = max_waiting
        self._close_seconds = close_seconds
        self._first_pause_seconds = first_pause_seconds
        self._waiting: deque[Record] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_failed = False
        self._has_warned = False
        self._sink: Sink | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        """Leave the record to the thread; returns at once."""
        with self._changed:
            self._waiting.append((step, dict(values), wall_time))
            if len(self._waiting) > self._max_waiting:
                self._waiting.popleft()
                self.num_lost += 1
            self._changed.notify()

    def close(self, is_failed: bool) -> None:
        """Wait until what is left is delivered, but no longer than `close_seconds`."""
        with self._changed:
            self._is_closing, self._is_failed = True, is_failed
            self._changed.notify()
        self._thread.join(self._close_seconds)
        num_waiting = len(self._waiting)
        if self._thread.is_alive():
            logger.warning(
                "%s: has not finished after %g s and is left alone (%d records may be missing there); metrics.jsonl "
                "has them all",
                self.name,
                self._close_seconds,
                num_waiting,
            )
        elif num_waiting + self.num_lost:
            logger.warning("%s: %d records are missing there", self.name, num_waiting + self.num_lost)

    def _run(self) -> None:
        num_tries = 0
        while (record := self._oldest()) is not None:
            error = self._attempt(record)
            num_tries = 0 if error is None else num_tries + 1
            if error is None or num_tries == MAX_TRIES:
                num_tries = 0
                self._drop(record, is_lost=error is not None)
            if error is not None and not self._pause(num_tries):
                break
        if self._sink is not None:
            self._attempt(None)

    def _oldest(self) -> Record | None:
        """The record to be delivered next, once there is one; None when the sink is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting[0] if self._waiting else None

    def _drop(self, record: Record, is_lost: bool) -> None:
        with self._changed:
            if self._waiting and self._waiting[0] is record:  # it may have made room for a newer one
                self._waiting.popleft()
                self.num_lost += is_lost

    def _attempt(self, record: Record | None) -> Exception | None:
        """Deliver `record`, or close the sink for None; returns what went wrong."""
        try:
            if self._sink is None:
                self._sink = self._open()
            if record is None:
                self._sink.close(self._is_failed)
            else:
                self._sink.scalars(*record)
        except Exception as error:  # a client may raise anything, and none of it may reach the run
            self._warn(error)
            return error
        if self._has_warned:
            self._has_warned = False
            logger.warning("%s: takes figures again; %d records were lost", self.name, self.num_lost)
        return None

    def _warn(self, error: Exception) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        logger.warning(
            "%s: takes no figures (%s: %s); training goes on, and at most %d records wait until it does",
            self.name,
            type(error).__name__,
            " ".join(str(error).split())[:300],
            self._max_waiting,
        )

    def _pause(self, num_tries: int) -> bool:
        """Wait before the next try; False where the sink is closing, and the next would be one too many."""
        seconds = min(self._first_pause_seconds * 2 ** max(0, num_tries - 1), LONGEST_PAUSE_SECONDS)
        with self._changed:
            if self._is_closing:
                return False
            self._changed.wait_for(lambda: self._is_closing, timeout=seconds)
        return True


def require_package(key: str, package: str) -> None:
    """Refuse a sink whose package is not installed.

    Args:
        key: the setting that asks for it.

    Raises:
        ConfigError: with the command that installs it.
    """
    if find_spec(package) is None:
        raise ConfigError(f"{key}: needs the package {package}, which is missing; pip install {package}, or remove it")
