"""`run.json` of a run: when, by which command and with what it was started, one entry a start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.core.errors import DataError
from gkd.core.files import read_bounded
from gkd.core.yaml_lines import printable

MAX_RUN_BYTES = 64 << 20
MAX_STARTS_SHOWN = 100
MAX_COMMAND_LENGTH = 2000


@dataclass(frozen=True)
class Start:
    """One start of a run, as far as it was recorded; empty texts stand for what is not known.

    `details` are the other plain values of the entry, such as the versions of Python and torch and the device.
    """

    time: str = ""
    command: str = ""
    git_commit: str = ""
    details: Mapping[str, str] | None = None

    @property
    def short_commit(self) -> str:
        """The first characters of the commit, with a plus where tracked files differed from it."""
        commit, _, mark = self.git_commit.partition("-")
        return commit[:8] + ("+" if mark == "dirty" else "")

    @property
    def short_time(self) -> str:
        """Day and minute, such as `2026-11-22 12:40`."""
        return self.time[:16].replace("T", " ")


def read_starts(path: Path) -> list[Start]:
    """The starts in `path`, the first one first.

    Raises:
        DataError: it is missing, too large, or no list of starts.
    """
    try:
        entries = json.loads(read_bounded(path, MAX_RUN_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({printable(str(error))})") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: is not a list of starts")
    return [_start(entry) for entry in entries[:MAX_STARTS_SHOWN] if isinstance(entry, dict)]


def _start(entry: dict[str, Any]) -> Start:
    command = entry.get("command")
    words = command if isinstance(command, list) else []
    git = entry.get("git")
    commit = entry.get("git_commit") or (git.get("commit") if isinstance(git, dict) else None)
    known = {"time", "command", "git_commit"}
    details = {
        printable(key, 40): printable(str(value), 120)
        for key, value in list(entry.items())[:40]
        if key not in known and isinstance(value, str | int | float)
    }
    return Start(
        time=_text(entry.get("time"), 40),
        command=printable(" ".join(str(word) for word in words[:500]), MAX_COMMAND_LENGTH),
        git_commit=_text(commit, 60),
        details=details,
    )


def _text(value: Any, max_length: int) -> str:
    return printable(value, max_length) if isinstance(value, str) else ""
