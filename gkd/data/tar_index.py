"""The index of a folder of tar shards: which images lie where, written beside the shards.

`index.json` names the shards and counts; `samples.bin` has five columns, one after another, with a number of each image
in the order in which the shards hold them: sample id, label, place in its shard in blocks of 512 bytes, size in bytes
(all int32) and CRC-32 (uint32), little-endian; `identities.txt`, where names are known, has one a line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.files import atomic_write

INDEX_FILE = "index.json"
SAMPLES_FILE = "samples.bin"
NAMES_FILE = "identities.txt"
BLOCK = 512
MAX_SHARD_BYTES = 4 << 30
FORMAT = "gkd tar shards 1"
_COLUMNS = ("<i4", "<i4", "<i4", "<i4", "<u4")
ROW_BYTES = 20
MAX_IMAGES = 1 << 28
MAX_LABEL = 1 << 24


@dataclass(frozen=True)
class Shard:
    """A tar file: its name in the folder, images in it, size, and SHA-256 in hex."""

    name: str
    num_images: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Samples:
    """The columns of `samples.bin`, each (N,)."""

    sample_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]
    checksums: npt.NDArray[np.uint32]

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        """The rows of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __len__(self) -> int:
        return len(self.sample_ids)

    def to_bytes(self) -> bytes:
        """The content of `samples.bin`."""
        columns = zip(fields(self), _COLUMNS, strict=True)
        return b"".join(getattr(self, field.name).astype(kind).tobytes() for field, kind in columns)

    @classmethod
    def from_bytes(cls, content: bytes, num_images: int) -> Samples:
        """Reads `to_bytes`; the arrays are views of `content`."""
        count = [np.frombuffer(content, kind, num_images, 4 * num_images * at) for at, kind in enumerate(_COLUMNS)]
        return cls(*count)


@dataclass(frozen=True)
class ShardIndex:
    """What the index says.

    Attributes:
        shards: the tar files.
        samples: a row for each image, shard by shard.
        num_identities: the largest label + 1.
        identity_names: by label, where names are known.
        fingerprint: of the data set; see `gkd.data.face_data.fingerprint_of`.
        are_keys_ids: whether the shards' members are named by sample id, as this project writes them.
        made_with: the settings that the shards were made with, for a rerun.
    """

    shards: tuple[Shard, ...]
    samples: Samples
    num_identities: int
    identity_names: tuple[str, ...] | None
    fingerprint: str
    are_keys_ids: bool
    made_with: dict[str, Any]

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The row of each shard's first image, and the number of rows, (shards + 1,)."""
        return np.cumsum([0, *(shard.num_images for shard in self.shards)])


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write the files of `index` to `folder`, `index.json` last."""
    samples = index.samples.to_bytes()
    names = None if index.identity_names is None else "".join(f"{name}\n" for name in index.identity_names).encode()
    facts = {
        "format": FORMAT,
        "num_images": len(index.samples),
        "num_identities": index.num_identities,
        "fingerprint": index.fingerprint,
        "are_keys_ids": index.are_keys_ids,
        "samples_sha256": sha256_of(samples),
        "names_sha256": None if names is None else sha256_of(names),
        "made_with": index.made_with,
        "shards": [asdict(shard) for shard in index.shards],
    }
    _write(folder / SAMPLES_FILE, samples)
    if names is not None:
        _write(folder / NAMES_FILE, names)
    _write(folder / INDEX_FILE, (json.dumps(facts, indent=1) + "\n").encode())


def sha256_of(content: bytes) -> str:
    """The SHA-256 of `content` in hex."""
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
