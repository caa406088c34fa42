"""Stopping on request: Ctrl-C and SIGTERM let the current step finish and save."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """While entered, the first SIGINT or SIGTERM is kept in `signal_number`; the second acts as it would without us."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopOnSignal:
        for number in HANDLED:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
