"""Face data in tar files (WebDataset shards) that are read as streams, from a disk or over a network.

Made with `prepare.py shards`, from a .rec or a folder: sample ids, labels, bytes and fingerprint stay the same.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.data.record_index import Int64s
from gkd.data.tar_cache import ShardCache
from gkd.data.tar_folder import TarFolder
from gkd.data.tar_index import BLOCK
from gkd.data.tar_index_reading import read_index
from gkd.data.tar_resident import ResidentShards

_log = logging.getLogger(__name__)
_MAX_CONNECTIONS = 8


class TarShards:
    """The images of a folder of tar shards.

    A shard is fetched whole, as one stream, when the first of its images is asked for, and is kept in memory: until
    each of its images has been read once, or it has lain idle, or `resident_shards` others are in use. So each process
    that reads needs up to `resident_shards` x the size of a shard, and images should be asked for shard by shard: the
    sampling `shards` does. Its index takes 32 bytes an image, which forked processes share.

    Every image is checked against the index (name in the tar, size, CRC-32).

    Args:
        path: the folder, or its address: http(s)://…, or a cloud store that fsspec knows (s3, gs, az, hf).
        resident_shards: how many shards one process may keep. Two for each lane that it reads are always enough; see
            `gkd.data.sampling.shards`.
        timeout_seconds: how long a connection over HTTP may be silent.
        num_attempts: how often a file is asked for over a network before an error is raised.
        cache: a folder on the local disk that keeps fetched shards, or None; see `ShardCache`.
        cache_gib: about how much it may hold.

    Attributes:
        path: the folder or address as given.
        is_streamed: True: reading single images at random is slow.
        num_loads: how many shards this process has fetched.

    Raises:
        ConfigError: a setting out of range, or an address that is not allowed.
        DataError: no such folder, or an index that is missing, damaged or does not fit.
    """

    is_streamed = True

    def __init__(
        self,
        path: str,
        *,
        resident_shards: int = 16,
        timeout_seconds: float = 60.0,
        num_attempts: int = 5,
        cache: str | Path | None = None,
        cache_gib: float = 100.0,
    ) -> None:
        if resident_shards < 1:
            raise ConfigError(f"resident_shards must be at least 1, got {resident_shards}")
        self.path = path
        self._folder = TarFolder(path, timeout_seconds=timeout_seconds, num_attempts=num_attempts)
        self._cache = None if cache is None else ShardCache(cache, cache_gib)
        self._index = read_index(self._folder)
        self._starts = self._index.starts
        self._rows = _inverse(self._index.samples.sample_ids)
        # Made at once, so that forked processes share it.
        self._labels: Int64s = self._index.samples.labels[self._rows].astype(np.int64)
        self._resident = ResidentShards(resident_shards)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image `index` and its label.

        Raises:
            IndexError: no such image.
            DataError: its shard is missing, truncated, or holds something else in its place.
            GkdError: its shard cannot be fetched over the network.
        """
        row, number = self._find(index)
        content = self._resident.find(number)
        if content is None:
            content = self._load(number, index)
        encoded = self._cut_out(content, row, index)
        self._resident.count_read(number)
        return encoded, int(self._labels[index])

    def will_need(self, indices: Int64s) -> None:
        """Fetch the shards of the images that are read next, over a network side by side.

        Raises:
            GkdError: the network fails. Whatever else is wrong with a shard shows when it is read.
        """
        rows = self._rows[indices[(indices >= 0) & (indices < len(self._rows))]]
        numbers, places = np.unique(np.searchsorted(self._starts, rows, side="right") - 1, return_index=True)
        wanted = {int(numbers[at]): int(self._index.samples.sample_ids[rows[places[at]]]) for at in np.argsort(places)}
        self._resident.wanted = set(wanted)
        missing = [number for number in wanted if self._resident.find(number) is None][: self._resident.capacity]
        if not self._folder.is_remote or len(missing) < 2:
            return
        with ThreadPoolExecutor(min(len(missing), _MAX_CONNECTIONS)) as pool:
            fetched = [(number, pool.submit(self._fetch, number, wanted[number])) for number in missing]
        for number, content in fetched:
            with suppress(DataError):
                self._keep(number, content.result())

    @property
    def num_identities(self) -> int:
        """The largest label + 1."""
        return self._index.num_identities

    @property
    def labels(self) -> Int64s:
        """int64 (N,), the label of every image."""
        return self._labels

    @property
    def identity_names(self) -> tuple[str, ...] | None:
        """The identities' names by label, where they are known."""
        return self._index.identity_names

    @property
    def fingerprint(self) -> str:
        """That of the data set that the shards were made from; see `fingerprint_of`."""
        return self._index.fingerprint

    @cached_property
    def shard_ids(self) -> Sequence[npt.NDArray[np.int32]]:
        """The sample ids in each shard, in the order in which they lie there."""
        return np.split(self._index.samples.sample_ids, self._starts[1:-1])

    @property
    def num_loads(self) -> int:
        """How many shards this process has fetched."""
        return self._resident.num_loads

    def describe(self, index: int) -> str:
        """The shard, and the place in it, of image `index`."""
        row, number = self._find(index)
        place = f"image {row - int(self._starts[number])} of {self._index.shards[number].num_images}"
        return f"{self._folder.where(self._index.shards[number].name)}: {place}, sample {index}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resident": ResidentShards(self._resident.capacity)}

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self._rows):
            raise IndexError(f"{self.path}: no image {index}; there are {len(self._rows)}")
        row = int(self._rows[index])
        return row, int(np.searchsorted(self._starts, row, side="right")) - 1

    def _load(self, number: int, index: int) -> bytes:
        content = self._fetch(number, index)
        self._keep(number, content)
        return content

    def _fetch(self, number: int, index: int) -> bytes:
        shard = self._index.shards[number]
        content = None if self._cache is None else self._cache.find(shard)
        if content is not None:
            return content
        try:
            content = self._folder.read(shard.name, shard.num_bytes, exact=True)
        except GkdError as error:
            raise type(error)(f"{error} (needed for sample {index})") from error
        if self._cache is not None:
            self._cache.add(shard, content)
        return content

    def _keep(self, number: int, content: bytes) -> None:
        shard = self._index.shards[number]
        if self._resident.add(number, content, shard.num_images):
            _log.warning(
                "%s is fetched again since more than %d shards are in use at once; raise resident_shards, or use the "
                "sampling `shards`",
                self._folder.where(shard.name),
                self._resident.capacity,
            )

    def _cut_out(self, content: bytes, row: int, index: int) -> bytes:
        samples = self._index.samples
        start = int(samples.blocks[row]) * BLOCK
        encoded = content[start : start + int(samples.sizes[row])]
        if self._index.are_keys_ids and not content.startswith(b"%09d." % index, start - BLOCK):
            name = content[start - BLOCK : start - BLOCK + 40].partition(b"\0")[0]
            raise DataError(
                f"{self.describe(index)}: the tar has {name!r} in its place; the shard is damaged or was exchanged for "
                "another, copy or make it again"
            )
        if zlib.crc32(encoded) != samples.checksums[row]:
            raise DataError(
                f"{self.describe(index)}: its checksum is not that of the index; the shard is damaged or was exchanged "
                "for another, copy or make it again"
            )
        return encoded


def _inverse(sample_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    rows = np.empty(len(sample_ids), dtype=np.int32)
    rows[sample_ids] = np.arange(len(sample_ids), dtype=np.int32)
    return rows
