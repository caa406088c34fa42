"""Runs the parts of a study: several commands at a time, each in a process of its own, stopped together."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from gkd.train.trainer import Stop

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
LONGEST_LINE = 1000
POLL_SECONDS = 0.2
STOPPED = 128 + signal.SIGINT


class Launch(Protocol):
    """Runs one command to its end, its output added to a file, and gives its exit code."""

    def __call__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Run `command`."""

    def interrupt(self) -> None:
        """Ask all running commands to save and end, and start no other."""

    def kill(self) -> None:
        """End all running commands at once."""


class ProcessLauncher:
    """Commands as processes. They have their own session, so that Ctrl-C reaches them once: through us."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def __call__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Run `command` and wait for it; 130 without a start once we were interrupted."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            with self._lock:
                if self._is_stopped:
                    return STOPPED
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def interrupt(self) -> None:
        """Send SIGINT to all."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL to all; checkpoints are written whole or not at all, so none is lost."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.send_signal(number)


def run_all(tasks: Sequence[Callable[[], None]], num_jobs: int, launch: Launch, stop: Stop) -> None:
    """Run `tasks`, `num_jobs` at a time; once `stop` says so, interrupt what runs, wait for it, start nothing more.

    Raises:
        Exception: the first that a task raised, after all have ended.
    """
    with ThreadPoolExecutor(num_jobs, thread_name_prefix="study") as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            _wait(futures, launch, stop)
        except BaseException:
            _cancel(futures)
            launch.kill()
            raise
    for future in futures:
        if not future.cancelled():
            future.result()


def _wait(futures: list[Future[None]], launch: Launch, stop: Stop) -> None:
    pending, is_told = set(futures), False
    while pending:
        _, pending = wait(pending, timeout=POLL_SECONDS)
        if stop.signal_number and not is_told:
            is_told = True
            logger.warning("asked to stop: waiting for %d run(s) to save", sum(future.running() for future in pending))
            _cancel(futures)
            launch.interrupt()


def _cancel(futures: list[Future[None]]) -> None:
    for future in futures:
        future.cancel()


def child_environment(num_jobs: int) -> dict[str, str]:
    """The environment of commands: the processor's cores are shared out, unless OMP_NUM_THREADS is set already."""
    environment = dict(os.environ)
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // num_jobs)))
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def log_size(log: Path) -> int:
    """Bytes of a log so far."""
    return log.stat().st_size if log.exists() else 0


def last_error(log: Path, start: int) -> str:
    """What a command said last: its line that begins with `error`, or else the last one, after byte `start`."""
    if not log.exists():
        return "no output"
    with log.open("rb") as file:
        file.seek(max(start, log_size(log) - (1 << 16)))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w*Error|error)\b", line)]
    return (errors or lines or ["no output"])[-1][:LONGEST_LINE]
