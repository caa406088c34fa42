"""Holding the folder that tar shards are written to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gkd.core.errors import DataError
from gkd.core.files import atomic_write, locked_folder, read_bounded
from gkd.data.tar_folder import TarFolder
from gkd.data.tar_index import INDEX_FILE, ShardIndex
from gkd.data.tar_index_reading import read_index

# Hidden, and gone when the index is written.
MARK_FILE = ".making.json"
_LOCK_FILE = ".lock"
_HALF_WRITTEN = re.compile(r"\.\.making\.[0-9a-f]{8}\.writing\.json")
_MAX_MARK_BYTES = 1 << 12


@contextmanager
def claimed(out: Path, made_with: dict[str, Any]) -> Iterator[ShardIndex | None]:
    """Let `out` be new, empty, or of the same task; gives the index of a finished one.

    Raises:
        DataError: `out` holds something else. GkdError: another process writes there.
    """
    _require_ours(out, made_with)
    with locked_folder(out, str(out), "another task writes shards"):
        finished = _require_ours(out, made_with)
        for left_over in out.glob(".*.writing.*"):
            left_over.unlink(missing_ok=True)
        if finished is None:
            with atomic_write(out / MARK_FILE) as temporary:
                temporary.write_text(json.dumps(made_with) + "\n", encoding="ascii")
        yield finished
        (out / MARK_FILE).unlink(missing_ok=True)


def _require_ours(out: Path, made_with: dict[str, Any]) -> ShardIndex | None:
    try:
        names = {entry.name for entry in out.iterdir()} if out.exists() else set()
    except OSError as error:
        raise DataError(f"{out}: cannot be used as a folder: {error.strerror}") from error
    # A task that was killed may have left its lock and a half-written mark.
    if all(name == _LOCK_FILE or _HALF_WRITTEN.fullmatch(name) for name in names):
        return None
    index = read_index(TarFolder(out)) if INDEX_FILE in names else None
    found = _read_mark(out) if index is None else index.made_with
    if found != made_with:
        raise DataError(
            f"{out}: is not empty, and holds no shards of this data and these settings; name another folder"
        )
    return index


def _read_mark(out: Path) -> object:
    if not (out / MARK_FILE).is_file():
        return None
    try:
        return json.loads(read_bounded(out / MARK_FILE, _MAX_MARK_BYTES))
    except (ValueError, RecursionError):
        return None
