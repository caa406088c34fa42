"""Files of embeddings, each named by what its embeddings depend on, in a folder of bounded size.

<folder>/<SHA-256 of the key>.embeddings    one line of JSON (the key, the dimension, the SHA-256 of what follows), then
                                            float32 (N, D), little-endian

Shapes: N images, D embedding dimension.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gkd.core.errors import GkdError
from gkd.core.files import atomic_write
from gkd.inference.views import Rows, View

logger = logging.getLogger(__name__)

SUFFIX = ".embeddings"
FORMAT = "gkd.pair_embeddings"
FORMAT_VERSION = 1
_MAX_HEADER_BYTES = 1 << 14
# A kept file, or one half written by a process that was killed.
_OWN_NAME = re.compile(r"[0-9a-f]{64}\.embeddings|\.[0-9a-f]{64}\.[0-9a-f]{8}\.writing\.embeddings")


@dataclass(frozen=True)
class EmbeddingKey:
    """Everything that the embeddings of one view depend on, but for the number of threads, which can change the
    rounding.

    network: see `whole_network_digest`. input: the input conversion as text. images: see `images_digest`.
    view: `image` or `mirror`. software: what decodes and computes, with versions, and the kind of device.
    """

    network: str
    input: str
    images: str
    num_images: int
    batch_size: int
    precision: str
    view: View
    software: str

    @property
    def file_name(self) -> str:
        """The name of the file that holds such embeddings."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest() + SUFFIX


class _DamagedError(Exception):
    """Says what is wrong with a kept file."""


def read_kept(folder: Path, key: EmbeddingKey) -> Rows | None:
    """The embeddings (N, D) of `key` in `folder`; None where they are not there, or, with a warning, unfit for use."""
    path = folder / key.file_name
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            rows = _read_rows(file, key)
        with suppress(OSError):  # of a folder that may be read only: the time of use is told by whoever may
            os.utime(path)
        return rows
    except (_DamagedError, OSError) as error:
        logger.warning("kept embeddings %s cannot be used and are made anew: %s", path, error)
        return None


def _read_rows(file: BinaryIO, key: EmbeddingKey) -> Rows:
    line = file.readline(_MAX_HEADER_BYTES)
    header = _parse_header(line, key)
    shape, wanted = (key.num_images, header["embedding_dim"]), header.get("sha256")
    size, expected = os.fstat(file.fileno()).st_size, len(line) + 4 * shape[0] * shape[1]
    if size != expected:
        raise _DamagedError(f"{size} bytes instead of {expected}")
    values = np.fromfile(file, dtype="<f4")
    if hashlib.sha256(values.data).hexdigest() != wanted:
        raise _DamagedError("its content does not match its SHA-256")
    return values.astype(np.float32, copy=False).reshape(shape)


def _parse_header(line: bytes, key: EmbeddingKey) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _DamagedError("its first line is no JSON") from error
    if not isinstance(header, dict) or (header.get("format"), header.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise _DamagedError("it is no file of kept embeddings of this version")
    if header.get("key") != asdict(key):
        raise _DamagedError("it is of another network, other images or other settings than its name says")
    dim = header.get("embedding_dim")
    if type(dim) is not int or dim < 1:
        raise _DamagedError(f"an embedding dimension of {dim!r}")
    return header


def write_kept(folder: Path, computed: Mapping[EmbeddingKey, Rows], max_bytes: int) -> None:
    """Keep embeddings (N, D) in `folder`, or say in a warning why they are not kept.

    Args:
        max_bytes: how much all files of the folder may take together; those unused for longest are removed.
    """
    if not computed:
        return
    headers = {key: _header(key, rows) for key, rows in computed.items()}
    size = sum(len(headers[key]) + rows.nbytes for key, rows in computed.items())
    if size > max_bytes:
        logger.warning("embeddings are not kept in %s: they take %d bytes of the %d allowed", folder, size, max_bytes)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, max_bytes - size)
        for key, rows in computed.items():
            with atomic_write(folder / key.file_name) as temporary, temporary.open("wb") as file:
                file.write(headers[key])
                rows.astype("<f4", copy=False).tofile(file)
    except (OSError, GkdError) as error:
        logger.warning("embeddings are not kept in %s: %s", folder, error)


def _header(key: EmbeddingKey, rows: Rows) -> bytes:
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "key": asdict(key),
        "embedding_dim": rows.shape[1],
        "sha256": hashlib.sha256(np.ascontiguousarray(rows, dtype="<f4").data).hexdigest(),
    }
    return json.dumps(values).encode() + b"\n"


def _make_room(folder: Path, max_bytes: int) -> None:
    """Remove the files that were used longest ago until the others take at most `max_bytes`."""
    found = []
    for entry in os.scandir(folder):
        if _OWN_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            found.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size
