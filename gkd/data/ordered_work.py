"""Work on numbered items in several processes: results come in order, and a death is told with its item."""

from __future__ import annotations

import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from gkd.core.errors import ConfigError, DataError, GkdError

Result = TypeVar("Result")

_SECONDS_TO_DIE = 5.0


@contextmanager
def in_order(
    work: Callable[[int], Result],
    num_items: int,
    *,
    num_workers: int,
    chunk_size: int,
    describe: Callable[[int], str],
) -> Iterator[Iterator[Result]]:
    """Yield an iterator over `work(0)`, `work(1)` … `work(num_items - 1)`.

    Worker w does the chunks w, w + num_workers, … and keeps at most one finished chunk, so memory is bounded and a dead
    worker is noticed when the turn of its chunk comes. With one worker all is done in this process. Open files after
    entering: the workers are copies of this process.

    Args:
        work: called in a worker.
        chunk_size: items that a worker sends at once.
        describe: what item i is called in messages.

    Raises:
        ConfigError: fewer than one worker.
        DataError: a worker was killed; with the item that it was at. What `work` raises is raised, GkdError as it is.
    """
    if num_workers < 1:
        raise ConfigError(f"the number of workers must be at least 1, got {num_workers}")
    num_workers = min(num_workers, max(1, -(-num_items // chunk_size)))
    if num_workers == 1:
        yield (work(index) for index in range(num_items))
        return
    crew = _Crew(work, num_items, num_workers, chunk_size, describe)
    try:
        crew.start()
        yield crew.results()
    finally:
        crew.stop()


class _Crew:
    def __init__(
        self,
        work: Callable[[int], Any],
        num_items: int,
        num_workers: int,
        chunk_size: int,
        describe: Callable[[int], str],
    ) -> None:
        self._is_forked = "fork" in get_all_start_methods()
        self._context: Any = get_context("fork" if self._is_forked else "spawn")
        self._current = self._context.RawArray("q", num_workers)
        self._settings = (work, num_items, num_workers, chunk_size, self._current)
        self._num_items, self._num_workers, self._chunk_size = num_items, num_workers, chunk_size
        self._describe = describe
        self._readers: list[Connection] = []
        self._processes: list[Any] = []

    def start(self) -> None:
        with warnings.catch_warnings():
            # The only threads here are those of a progress bar and of NumPy; the workers use neither.
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            for number in range(self._num_workers):
                self._start_one(number)

    def results(self) -> Iterator[Any]:
        for start in range(0, self._num_items, self._chunk_size):
            results, error = self._receive(start // self._chunk_size % self._num_workers)
            yield from results
            if error is not None:
                raise error

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for reader in self._readers:
            reader.close()

    def _start_one(self, number: int) -> None:
        reader, sender = self._context.Pipe(duplex=False)
        self._readers.append(reader)
        # A copied reading end would keep a worker waiting for ever after this process is killed.
        inherited = self._readers if self._is_forked else []
        process = self._context.Process(target=_serve, args=(number, *self._settings, sender, inherited), daemon=True)
        process.start()
        self._processes.append(process)
        sender.close()

    def _receive(self, number: int) -> tuple[list[Any], Exception | None]:
        try:
            return self._readers[number].recv()  # type: ignore[no-any-return]
        except (EOFError, OSError) as error:
            process = self._processes[number]
            process.join(_SECONDS_TO_DIE)
            how = _how_it_ended(process.exitcode)
            raise DataError(
                f"{self._describe(self._current[number])}: the worker process that was at this file {how}; "
                "check the file and the free memory, then run the task again"
            ) from error


def _serve(
    number: int,
    work: Callable[[int], Any],
    num_items: int,
    num_workers: int,
    chunk_size: int,
    current: Any,
    sender: Connection,
    inherited: Sequence[Connection],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for reader in inherited:
        reader.close()
    with suppress(BrokenPipeError):  # the parent is gone
        for start in range(number * chunk_size, num_items, num_workers * chunk_size):
            results: list[Any] = []
            error: Exception | None = None
            try:
                for index in range(start, min(start + chunk_size, num_items)):
                    current[number] = index
                    results.append(work(index))
            except GkdError as refusal:
                error = refusal
            except Exception:
                error = RuntimeError(f"in a worker process: {traceback.format_exc()}")
            sender.send((results, error))


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with code {exit_code}"
