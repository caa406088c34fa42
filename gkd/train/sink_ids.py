"""The ids under which servers know a run, kept in its folder so that a resumed run continues the same one there."""

from __future__ import annotations

import re
from pathlib import Path

from gkd.core.files import atomic_write, read_bounded

_MAX_BYTES = 4096
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def kept_id(path: Path) -> str | None:
    """The id in the file `path`; None where there is no file, or what it holds is no id.

    Raises:
        DataError: the file cannot be read.
    """
    if not path.exists():
        return None
    text = read_bounded(path, _MAX_BYTES).decode("utf-8", errors="replace").strip()
    return text if _ID.fullmatch(text) else None


def keep_id(path: Path, run_id: str) -> None:
    """Write `run_id` into the file `path`.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(run_id + "\n", encoding="utf-8")
