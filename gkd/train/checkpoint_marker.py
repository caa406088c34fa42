"""The marker of a whole checkpoint: `complete.json`, written last, with the size and SHA-256 of every other file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gkd.core.errors import CheckpointError, GkdError
from gkd.core.files import read_bounded

MARKER_NAME = "complete.json"
MAX_JSON_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """What one file of a checkpoint must be: its size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Marker:
    """The contents of `complete.json`: the global step, the score (higher is better) and the files by name."""

    step: int
    score: float | None
    files: dict[str, FileRecord]


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_file(path: Path, *, is_synced: bool = False) -> FileRecord:
    """The size and digest of a file; with `is_synced` it is forced to the disk first."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as stream:
        if is_synced:
            os.fsync(stream.fileno())
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return FileRecord(size, digest.hexdigest())


def json_text(data: Any, what: str) -> str:
    """`data` as JSON text that reads back equal.

    Raises:
        CheckpointError: something in `data` is not plain (a tensor, a tuple, a key that is no text, inf or nan), or the
            text is too long to be read again.
    """
    try:
        text = json.dumps(data, allow_nan=False, indent=1)
        is_plain = json.loads(text) == data
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} cannot be stored: {error}; give plain JSON values") from error
    if not is_plain:
        raise CheckpointError(f"{what} would change when stored as JSON; use lists, and text as keys")
    if len(text.encode()) > MAX_JSON_BYTES:
        raise CheckpointError(f"{what} takes {len(text)} bytes, more than {MAX_JSON_BYTES}; store arrays as tensors")
    return text


def write_marker(folder: Path, marker: Marker) -> None:
    """Write `complete.json` and force it and the folder to the disk."""
    contents = {"format": 1, "torch": torch.__version__, **asdict(marker)}
    path = folder / MARKER_NAME
    path.write_text(json_text(contents, MARKER_NAME))
    sync(path)
    sync(folder)


def read_json(path: Path) -> Any:
    """The contents of a JSON file of bounded size; `CheckpointError` names the file where it is not JSON."""
    try:
        return json.loads(read_bounded(path, MAX_JSON_BYTES), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: not valid JSON ({error})") from error
    except (GkdError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def read_marker(folder: Path) -> Marker:
    """The marker of a checkpoint folder, checked for form but not against the files.

    Raises:
        CheckpointError: no folder, a file in its place, no marker (an unfinished save), or a malformed one.
    """
    if not folder.exists():
        raise CheckpointError(f"no checkpoint at {folder}: there is no such folder; check the path")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder such as step_00001000: give that folder")
    path = folder / MARKER_NAME
    if not os.path.lexists(path):
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: it has no {MARKER_NAME} (an unfinished save, or another folder); "
            "give another checkpoint"
        )
    _check_regular(path)
    return _parse(read_json(path), path)


def verify(folder: Path, *, with_digests: bool = True) -> Marker:
    """Check every file of a checkpoint against its marker; without digests only names and sizes.

    Raises:
        CheckpointError: not a whole checkpoint, or a file that is missing, of another size or of other contents.
    """
    marker = read_marker(folder)
    for name, wanted in marker.files.items():
        path = folder / name
        size = _check_regular(path)
        if size != wanted.size:
            raise CheckpointError(f"{path} is damaged: {size} bytes, not {wanted.size}; give another checkpoint")
        if with_digests and describe_file(path) != wanted:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the stored one; give another checkpoint")
    return marker


def _check_regular(path: Path) -> int:
    # A link or a pipe could lead out of the folder or never end.
    try:
        status = path.lstat()
    except OSError as error:
        raise CheckpointError(f"{path} is missing or unreadable ({error.strerror}); give another checkpoint") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file; refused")
    return status.st_size


def _parse(contents: Any, path: Path) -> Marker:
    try:
        if contents["format"] != 1:
            raise ValueError(f"format {contents['format']!r}, this version reads format 1")
        step, score = contents["step"], contents["score"]
        if type(step) is not int or not isinstance(score, int | float | None):
            raise ValueError("step or score is not a number")
        return Marker(step, score, {name: _parse_file(name, file) for name, file in contents["files"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}; give another checkpoint") from error


def _parse_file(name: str, file: dict[str, Any]) -> FileRecord:
    size, sha256 = file["size"], file["sha256"]
    if name in {"", ".", "..", MARKER_NAME} or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in the folder")
    if type(size) is not int or size < 0 or not _DIGEST.fullmatch(sha256):
        raise ValueError(f"bad size or digest for {name!r}")
    return FileRecord(size, sha256)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
