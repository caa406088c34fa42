"""Temporary files that a killed task has left: told from those in use by a lock that falls with the process."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_log = logging.getLogger(__name__)


def lock(file: IO[Any]) -> None:
    """Mark a temporary file as in use, until this process closes it or dies."""
    with suppress(OSError):  # file systems without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_left_overs(path: Path) -> None:
    """Remove the temporary files of writers of `path` that were killed; those of living writers are locked."""
    pattern = re.compile(re.escape(f".{path.stem}") + r"(\.skipped)?\.[0-9a-f]{8}\.writing\.(rec|lst|idx|csv)")
    if not path.parent.is_dir():
        return
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if pattern.fullmatch(entry.name)]
    for name in names:
        _remove_unlocked(path.with_name(name))


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        _log.info("%s: removed; an interrupted task had left it", path)
