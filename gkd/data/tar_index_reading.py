"""Reads the index of a folder of tar shards, which may hold anything."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.data.tar_folder import TarFolder
from gkd.data.tar_index import (
    BLOCK,
    FORMAT,
    INDEX_FILE,
    MAX_IMAGES,
    MAX_LABEL,
    MAX_SHARD_BYTES,
    NAMES_FILE,
    ROW_BYTES,
    SAMPLES_FILE,
    Samples,
    Shard,
    ShardIndex,
    sha256_of,
)

_MAX_INDEX_BYTES = 64 << 20
_MAX_NAMES_BYTES = 256 << 20
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_index(folder: TarFolder) -> ShardIndex:
    """Read and check the index of `folder`.

    Raises:
        DataError: missing, not an index of this form, or counts, names, places or hashes that do not fit together.
    """
    facts = _Facts(_parse(folder), folder.where(INDEX_FILE))
    facts.require(facts.take("format", str) == FORMAT, f"`format` is not {FORMAT!r}")
    num_images = facts.count("num_images", MAX_IMAGES)
    num_identities = facts.count("num_identities", MAX_LABEL)
    shards = _read_shards(facts, num_images)
    index = ShardIndex(
        shards=shards,
        samples=_read_samples(folder, facts.sha256("samples_sha256"), num_images),
        num_identities=num_identities,
        identity_names=_read_names(folder, facts, num_identities),
        fingerprint=facts.sha256("fingerprint"),
        are_keys_ids=facts.take("are_keys_ids", bool),
        made_with=facts.take("made_with", dict),
    )
    _check_samples(index, folder.where(SAMPLES_FILE))
    return index


class _Facts:
    """Values of a JSON object that may hold anything."""

    def __init__(self, values: object, where: str) -> None:
        self._where = where
        if not isinstance(values, dict):
            raise self._error("not an object")
        self._values: dict[str, Any] = values

    def take(self, key: str, kind: type) -> Any:
        value = self._values.get(key)
        self.require(type(value) is kind, f"`{key}` must be of type {kind.__name__}, got {str(value)[:60]!r}")
        return value

    def count(self, key: str, most: int) -> int:
        value = int(self.take(key, int))
        self.require(1 <= value <= most, f"`{key}` must be 1 to {most:,}, got {str(value)[:60]}")
        return value

    def sha256(self, key: str) -> str:
        value = str(self.take(key, str))
        self.require(_SHA256.fullmatch(value) is not None, f"`{key}` is no SHA-256 in hex: {value[:80]!r}")
        return value

    def is_null(self, key: str) -> bool:
        return key in self._values and self._values[key] is None

    def inside(self, value: object, what: str) -> _Facts:
        return _Facts(value, f"{self._where}: {what}")

    def require(self, is_fit: bool, problem: str) -> None:
        if not is_fit:
            raise self._error(problem)

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self._where}: not an index of tar shards: {problem}")


def _parse(folder: TarFolder) -> object:
    content = folder.read(INDEX_FILE, _MAX_INDEX_BYTES)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{folder.where(INDEX_FILE)}: not an index of tar shards (no JSON); make it with `prepare.py shards`"
        ) from error


def _read_shards(facts: _Facts, num_images: int) -> tuple[Shard, ...]:
    shards: list[Shard] = []
    names: set[str] = set()
    for number, value in enumerate(facts.take("shards", list)):
        entry = facts.inside(value, f"shard {number}")
        name = str(entry.take("name", str))
        entry.require(_SHARD_NAME.fullmatch(name) is not None, f"{name[:80]!r} is not a plain name that ends in .tar")
        entry.require(name not in names, f"{name} is there twice")
        names.add(name)
        count, size = entry.count("num_images", num_images), entry.count("num_bytes", MAX_SHARD_BYTES)
        shards.append(Shard(name, count, size, entry.sha256("sha256")))
    total = sum(shard.num_images for shard in shards)
    facts.require(total == num_images, f"its shards have {total} images, but `num_images` is {num_images}")
    return tuple(shards)


def _read_samples(folder: TarFolder, sha256: str, num_images: int) -> Samples:
    content = folder.read(SAMPLES_FILE, ROW_BYTES * num_images, exact=True)
    _check_hash(content, sha256, folder.where(SAMPLES_FILE))
    return Samples.from_bytes(content, num_images)


def _read_names(folder: TarFolder, facts: _Facts, num_identities: int) -> tuple[str, ...] | None:
    if facts.is_null("names_sha256"):
        return None
    where, sha256 = folder.where(NAMES_FILE), facts.sha256("names_sha256")
    content = folder.read(NAMES_FILE, _MAX_NAMES_BYTES)
    _check_hash(content, sha256, where)
    try:
        names = tuple(content.decode("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text; copy or make the folder again") from error
    if len(names) != num_identities:
        raise DataError(f"{where}: {len(names)} names for {num_identities} identities; copy or make the folder again")
    return names


def _check_hash(content: bytes, sha256: str, where: str) -> None:
    if sha256_of(content) != sha256:
        raise DataError(f"{where}: does not belong to the {INDEX_FILE} beside it, or is damaged; copy both again")


def _check_samples(index: ShardIndex, where: str) -> None:
    samples = index.samples
    _refuse_row(np.flatnonzero((samples.sample_ids < 0) | (samples.sample_ids >= len(samples))), where, "sample id")
    num_places = np.bincount(samples.sample_ids, minlength=len(samples))
    _refuse_row(np.flatnonzero(num_places[samples.sample_ids] != 1), where, "sample id (there twice)")
    _refuse_row(np.flatnonzero((samples.labels < 0) | (samples.labels >= index.num_identities)), where, "label")
    limits = np.repeat([shard.num_bytes for shard in index.shards], [shard.num_images for shard in index.shards])
    ends = samples.blocks.astype(np.int64) * BLOCK + samples.sizes
    is_outside = (samples.blocks < 1) | (samples.sizes < 1) | (ends > limits)
    _refuse_row(np.flatnonzero(is_outside), where, "place outside its shard")


def _refuse_row(rows: npt.NDArray[np.int64], where: str, what: str) -> None:
    if len(rows):
        raise DataError(f"{where}: row {rows[0]} has an unfit {what}; make the index again with `prepare.py shards`")
