"""Makes the index of tar shards that other tools have written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gkd.core.errors import DataError
from gkd.core.progress import progress
from gkd.data.face_data import fingerprint_of
from gkd.data.record_index import Int64s
from gkd.data.tar_claim import MARK_FILE
from gkd.data.tar_folder import TarFolder
from gkd.data.tar_index import BLOCK, INDEX_FILE, Samples, Shard, ShardIndex, write_index
from gkd.data.tar_index_reading import read_index
from gkd.data.tar_scan import describe_shard, scan_shard, to_samples


def index_shards(folder: str | Path) -> ShardIndex:
    """Write an index beside the .tar files of `folder`, which stay as they are.

    Sample ids follow the names of the tars, and the places in each. See `scan_shard` for what the tars may hold.

    Raises:
        DataError: no tars, the index of shards that this project has written, or a tar that cannot be used.
    """
    folder = Path(folder)
    paths = _find_tars(folder)
    if (folder / MARK_FILE).exists() or _is_written_here(folder):
        raise DataError(f"{folder}: `prepare.py shards` writes the index of these shards itself; nothing to do")
    shards, rows, num_images = [], [], 0
    for path in progress(paths, "indexing", unit="shards"):
        found = scan_shard(path)
        if not found:
            raise DataError(f"{path}: holds no images; remove it")
        shards.append(describe_shard(path, len(found)))
        rows.append(to_samples(range(num_images, num_images + len(found)), found))
        num_images += len(found)
    samples = Samples.join(rows)
    num_identities = int(samples.labels.max()) + 1
    index = ShardIndex(
        shards=tuple(shards),
        samples=samples,
        num_identities=num_identities,
        identity_names=None,
        fingerprint=fingerprint_of(_LocalImages(folder, tuple(shards), samples, num_identities)),
        are_keys_ids=False,
        made_with={},
    )
    write_index(folder, index)
    return index


def _find_tars(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: holds no .tar files")
    return paths


def _is_written_here(folder: Path) -> bool:
    return (folder / INDEX_FILE).exists() and read_index(TarFolder(folder)).are_keys_ids


@dataclass
class _LocalImages:
    """Single images of tars on the disk, in the order of the index, for the fingerprint."""

    folder: Path
    shards: tuple[Shard, ...]
    samples: Samples
    num_identities: int
    identity_names: tuple[str, ...] | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(shard.num_images for shard in self.shards)])

    @property
    def labels(self) -> Int64s:
        return self.samples.labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        with open(self.describe(index), "rb") as file:  # noqa: PTH123
            start, size = int(self.samples.blocks[index]) * BLOCK, int(self.samples.sizes[index])
            return os.pread(file.fileno(), size, start), int(self.samples.labels[index])

    def describe(self, index: int) -> str:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return str(self.folder / self.shards[number].name)
