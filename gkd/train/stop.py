"""Stopping on request: Ctrl-C, SIGTERM and SIGUSR1 let the step finish and save.

Clusters announce the end of a job or its preemption with SIGTERM or, where told so, SIGUSR1. The tool's exit code is
128 + the signal's number: 130 for SIGINT, 143 for SIGTERM, 138 for SIGUSR1.

A signal to a whole job reaches a rank twice, directly and through its launcher, so repeated ones do no harm: only a
second Ctrl-C, and not one that follows at once, ends the run without saving.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ECHO_SECONDS = 1.0


class StopOnSignal:
    """While entered, the first of these signals is kept in `signal_number`, and later ones are ignored.

    But for SIGINT: one that comes more than `ECHO_SECONDS` after the first signal acts as it would without us.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._first_time = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopOnSignal:
        for number in HANDLED:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.signal_number:
            self.signal_number, self._first_time = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._first_time > ECHO_SECONDS:
            handler = self._previous[signal.SIGINT]
            if callable(handler):
                handler(number, frame)
