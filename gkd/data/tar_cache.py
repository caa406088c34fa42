"""A folder on the local disk that keeps tar shards from far away."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import GIB, atomic_write, read_bounded
from gkd.data.tar_index import Shard

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[0-9a-f]{64}\.tar")
_IN_USE_SECONDS = 24 * 3600


class ShardCache:
    """Keeps shards by their SHA-256, which is checked whenever one is read, so that folders may share a cache.

    Every epoch reads each shard once. So a full cache keeps what it has, and that share of the data is read from it in
    each epoch; shards that nobody has used for a day give way. Files of other names are left alone.

    Args:
        folder: made where it is missing.
        max_gib: about how much it may hold; processes that write at the same time may each exceed it by a shard.

    Raises:
        ConfigError: the size is not above 0.
        DataError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, max_gib: float) -> None:
        if not max_gib > 0:
            raise ConfigError(f"cache_gib must be above 0, got {max_gib}")
        self._folder = Path(folder)
        self._max_bytes = int(max_gib * GIB)
        self._has_warned = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot make this folder for the cache: {error.strerror}") from error

    def find(self, shard: Shard) -> bytes | None:
        """The content of `shard`, if it is here and whole."""
        path = self._path(shard)
        if not path.exists():
            return None
        try:
            content = read_bounded(path, shard.num_bytes)
        except DataError:
            content = b""
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            _log.warning("%s: damaged; it is fetched again", path)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        return content

    def add(self, shard: Shard, content: bytes) -> None:
        """Keep `content`, if there is room and it is what the index says."""
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            return  # reading images from it tells what is wrong
        try:
            if self._make_room(shard.num_bytes):
                with atomic_write(self._path(shard)) as temporary:
                    temporary.write_bytes(content)
        except (OSError, DataError) as error:
            if not self._has_warned:
                _log.warning("%s: cannot keep shards here (%s); going on without", self._folder, error)
            self._has_warned = True

    def _path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.sha256}.tar"

    def _make_room(self, num_bytes: int) -> bool:
        """Remove unused shards until `num_bytes` fit; returns whether they do."""
        with os.scandir(self._folder) as entries:
            files = [(entry.stat(), entry.path) for entry in entries if _NAME.fullmatch(entry.name)]
        total = num_bytes + sum(status.st_size for status, _ in files)
        unused_since = time.time() - _IN_USE_SECONDS
        for status, path in sorted(files, key=lambda file: file[0].st_mtime):
            if total <= self._max_bytes or status.st_mtime > unused_since:
                break
            Path(path).unlink(missing_ok=True)
            total -= status.st_size
        return total <= self._max_bytes
