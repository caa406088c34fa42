"""Learning of a loading process's death while the loader waits, and only then.

The loader of torch installs a handler of SIGCHLD that raises in the main thread wherever that is: in the middle of a
step, or of a checkpoint being written. Here it is held back until a batch is being waited for.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


class _Watch:
    def __init__(self) -> None:
        self._torch_handler: Handler | None = None
        self._is_waiting = False
        self._has_pending = False

    def install(self) -> None:
        """Take the place of the handler that torch has installed. Handlers belong to the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        current = signal.getsignal(signal.SIGCHLD)
        if callable(current) and current != self._handle:
            self._torch_handler = current
            signal.signal(signal.SIGCHLD, self._handle)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let a death raise inside this block, one that came before it included."""
        self._is_waiting = True
        try:
            if self._has_pending:
                self._has_pending = False
                self._raise_if_dead(signal.SIGCHLD, None)
            yield
        finally:
            self._is_waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_waiting:
            self._raise_if_dead(number, frame)
        else:
            self._has_pending = True

    def _raise_if_dead(self, number: int, frame: FrameType | None) -> None:
        if self._torch_handler is not None:
            self._torch_handler(number, frame)


WATCH = _Watch()
