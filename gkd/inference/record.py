"""Measurements that are made once and kept in a file, with everything that they depend on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gkd.core import distributed
from gkd.core.errors import DataError
from gkd.core.files import atomic_write, read_bounded

logger = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20


def measured_once(
    path: Path | None, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """What `path` holds for `key`, or what `measure` gives, which is then kept there.

    Rank 0 reads and writes for all; every rank measures. A damaged file counts for nothing.

    Args:
        path: None keeps nothing.
        key: plain values by name: all that the measurement depends on.
        measure: gives plain values by name.
    """
    found: dict[str, Any] | None = distributed.broadcast_object(_read(path, key))
    if found is not None:
        return found
    values = dict(measure())
    if path is not None and distributed.rank() == 0:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"key": key, "values": values}, indent=2) + "\n", encoding="utf-8")
    return values


def _read(path: Path | None, key: Mapping[str, Any]) -> dict[str, Any] | None:
    if path is None or distributed.rank() != 0 or not path.exists():
        return None
    try:
        content = json.loads(read_bounded(path, _MAX_BYTES))
        if content["key"] == key and isinstance(content["values"], dict):
            return dict(content["values"])
    except (DataError, ValueError, KeyError, TypeError, RecursionError):
        logger.warning("%s: damaged; it is measured anew", path)
    return None
