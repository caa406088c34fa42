"""What a tar shard on the disk holds: images with labels, by walking through it once."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from gkd.core.errors import DataError
from gkd.data.tar_index import BLOCK, MAX_LABEL, MAX_SHARD_BYTES, Samples, Shard

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})

_MAX_LABEL_BYTES = 1 << 20
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True)
class Found:
    """An image in a tar: its key, label, place in blocks of 512 bytes, size in bytes and CRC-32."""

    key: str
    label: int
    block: int
    size: int
    checksum: int


def scan_shard(path: Path) -> list[Found]:
    """The images of the uncompressed tar `path`, in WebDataset layout.

    Members whose names are equal up to the first dot of the file name, and which follow each other, are a sample. It
    needs one image (.jpg, .jpeg, .png, .webp, .bmp) and its label: the number in a .cls, or `label` in a .json. Other
    members are left out, and nothing else is decoded.

    Raises:
        DataError: no tar, compressed, truncated, too large, or a sample without an image or a label.
    """
    try:
        size = path.stat().st_size
        if size > MAX_SHARD_BYTES:
            raise DataError(f"{path}: {size:,} bytes, but a shard may have {MAX_SHARD_BYTES:,}; make smaller shards")
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return [
                _sample(path, file, key, list(members)) for key, members in groupby(_members(path, tar, size), _key)
            ]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tarfile.TarError, ValueError, EOFError, RecursionError) as error:
        raise DataError(f"{path}: not an uncompressed tar, damaged or truncated ({error})") from error


def describe_shard(path: Path, num_images: int) -> Shard:
    """The index's entry of the tar `path`."""
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            num_bytes += len(chunk)
    return Shard(path.name, num_images, num_bytes, digest.hexdigest())


def to_samples(sample_ids: Sequence[int], found: Sequence[Found]) -> Samples:
    """The index's rows of `found`."""
    return Samples(
        sample_ids=np.array(sample_ids, dtype=np.int32),
        labels=np.array([image.label for image in found], dtype=np.int32),
        blocks=np.array([image.block for image in found], dtype=np.int32),
        sizes=np.array([image.size for image in found], dtype=np.int32),
        checksums=np.array([image.checksum for image in found], dtype=np.uint32),
    )


def _members(path: Path, tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        cast(Any, tar).members = []  # the tar would keep them all
        if not member.isreg() or member.name.startswith("__") or member.name.rpartition("/")[2].startswith("."):
            continue
        if member.issparse():
            raise DataError(f"{path}: {member.name!r} is a sparse file; make the tar without them")
        if member.offset_data + member.size > size:
            raise DataError(f"{path}: truncated inside {member.name!r}; copy or make it again")
        yield member


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, file = member.name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _sample(path: Path, file: BinaryIO, key: str, members: list[tarfile.TarInfo]) -> Found:
    suffixes = {member.name[len(key) + 1 :].lower(): member for member in members}
    if len(suffixes) < len(members):
        raise DataError(f"{path}: sample {key!r} has two members of one name; the keys of samples must differ")
    images = [member for suffix, member in suffixes.items() if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise DataError(f"{path}: sample {key!r} has {len(images)} images (.jpg, .jpeg, .png …), but needs one")
    label = _label(path, file, key, suffixes)
    (image,) = images
    if not image.size:
        raise DataError(f"{path}: sample {key!r}: the image is empty")
    content = _read(file, image)
    return Found(key, label, image.offset_data // BLOCK, image.size, zlib.crc32(content))


def _label(path: Path, file: BinaryIO, key: str, suffixes: dict[str, tarfile.TarInfo]) -> int:
    member = suffixes.get("cls") or suffixes.get("json")
    if member is None:
        raise DataError(
            f"{path}: sample {key!r} has no label: a .cls with a number, or a .json with `label`, is needed"
        )
    if member.size > _MAX_LABEL_BYTES:
        raise DataError(f"{path}: {member.name!r} of {member.size:,} bytes is too large for a label")
    content = _read(file, member)
    label = _number(content) if "cls" in suffixes else _json_label(content)
    if label is None or not 0 <= label < MAX_LABEL:
        raise DataError(
            f"{path}: {member.name!r}: no label from 0 below {MAX_LABEL:,} in it (begins with {content[:40]!r})"
        )
    return label


def _number(content: bytes) -> int | None:
    text = content.strip()
    return int(text) if text.isdigit() and len(text) < 10 else None


def _json_label(content: bytes) -> int | None:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    label = values.get("label") if isinstance(values, dict) else None
    return label if type(label) is int else None


def _read(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)
