"""The state of the source tree that a run is started from, as far as git knows it. Nothing here is fatal to a run."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

MAX_DIFF_BYTES = 1 << 20
_MAX_LISTED_BYTES = 16 << 20
_TIMEOUT_SECONDS = 10.0
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class GitState:
    """What git says of a source tree.

    commit: its hash, with `-dirty` where tracked files differ from it. branch: None where none is checked out. diff: of
    the tracked files against the commit, at most `MAX_DIFF_BYTES` and a line that says so where it is cut.
    num_untracked: files that are neither tracked nor ignored; their names and contents are not looked at.
    """

    commit: str | None
    branch: str | None = None
    diff: bytes = b""
    num_untracked: int | None = None


def git_state(root: Path = _ROOT) -> GitState:
    """The state of the source tree at `root`; all is unknown outside of git."""
    described = _output(root, 4096, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    if not described:
        return GitState(None)
    commit = described.decode("utf-8", errors="replace").strip()
    branch = _output(root, 4096, "symbolic-ref", "--short", "--quiet", "HEAD")
    untracked = _output(root, _MAX_LISTED_BYTES, "ls-files", "--others", "--exclude-standard", "-z")
    return GitState(
        commit,
        branch.decode("utf-8", errors="replace").strip() or None if branch else None,
        _diff(root) if commit.endswith("-dirty") else b"",
        None if untracked is None else untracked.count(b"\0"),
    )


def _diff(root: Path) -> bytes:
    """Programs that a repository names for showing its files are not run."""
    arguments = ("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv")
    diff = _output(root, MAX_DIFF_BYTES + 1, *arguments) or b""
    if len(diff) <= MAX_DIFF_BYTES:
        return diff
    return diff[:MAX_DIFF_BYTES] + f"\n... cut after {MAX_DIFF_BYTES:,} bytes\n".encode()


def _output(root: Path, max_bytes: int, *arguments: str) -> bytes | None:
    """The first `max_bytes` of what git writes; None where it fails, is missing or takes too long."""
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        with subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            return _bounded(process, max_bytes)
    except (OSError, subprocess.SubprocessError):
        return None


def _bounded(process: subprocess.Popen[bytes], max_bytes: int) -> bytes | None:
    assert process.stdout is not None
    timer = threading.Timer(_TIMEOUT_SECONDS, process.kill)
    timer.start()
    try:
        output = process.stdout.read(max_bytes)
        is_cut = len(output) == max_bytes
        if is_cut:
            process.kill()
        code = process.wait()
    finally:
        timer.cancel()
    return output if code == 0 or is_cut else None
