"""Writes face data into tar shards in WebDataset layout."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gkd.core import seed as randomness
from gkd.core.errors import ConfigError, DataError
from gkd.core.files import atomic_write
from gkd.core.progress import progress
from gkd.data.identities import Faces, open_faces, read_image
from gkd.data.image_header import image_format
from gkd.data.record_index import Int64s
from gkd.data.tar_claim import claimed
from gkd.data.tar_index import MAX_IMAGES, Samples, Shard, ShardIndex, write_index
from gkd.data.tar_scan import Found, describe_shard, scan_shard, to_samples

_log = logging.getLogger(__name__)
_MAX_SHARDS = 1_000_000
_SUFFIXES = {"jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp"}


@dataclass(frozen=True)
class ShardsWritten:
    """What the task did; `num_kept` shards were there from an earlier run."""

    num_images: int
    num_shards: int
    num_kept: int


def write_shards(
    source: str | Path, out: str | Path, *, images_per_shard: int = 10_000, seed: int = 0
) -> ShardsWritten:
    """Write the images of `source` to tar files in the folder `out`, in an order shuffled once, with an index.

    Members are `<sample id>.<format>`, byte for byte, and `<sample id>.cls`, the label as text; times and owners are
    fixed, so the same settings give the same bytes. An interrupted task goes on where it stopped.

    Args:
        source: a .rec file or a folder of identities.
        images_per_shard: in each shard but the last.
        seed: of the order.

    Raises:
        ConfigError: settings out of range.
        DataError: a damaged image, or `out` holds something else.
    """
    faces, out = open_faces(source), Path(out)
    _check_settings(faces, images_per_shard, seed)
    _check_names(faces)
    made_with = {"source": faces.fingerprint, "images_per_shard": images_per_shard, "seed": seed}
    order = randomness.permutation(len(faces), seed, 0)
    parts = np.split(order, range(images_per_shard, len(faces), images_per_shard))
    with claimed(out, made_with) as finished:
        if finished is not None and _are_all_there(out, finished.shards):
            _log.info("%s: already written with these settings", out)
            return ShardsWritten(len(faces), len(parts), len(parts))
        shards, rows, num_kept = _write_all(faces, out, parts)
        index = ShardIndex(
            shards=shards,
            samples=rows,
            num_identities=faces.num_identities,
            identity_names=faces.identity_names,
            fingerprint=faces.fingerprint,
            are_keys_ids=True,
            made_with=made_with,
        )
        write_index(out, index)
    return ShardsWritten(len(faces), len(shards), num_kept)


def _write_all(faces: Faces, out: Path, parts: list[Int64s]) -> tuple[tuple[Shard, ...], Samples, int]:
    shards, rows, num_kept = [], [], 0
    for number, sample_ids in enumerate(progress(parts, "writing", unit="shards")):
        path = out / f"shard-{number:06d}.tar"
        found = _scan_finished(faces, path, sample_ids)
        num_kept += found is not None
        if found is None:
            found = _write_shard(faces, path, sample_ids)
        shards.append(describe_shard(path, len(sample_ids)))
        rows.append(to_samples(sample_ids.tolist(), found))
    return tuple(shards), Samples.join(rows), num_kept


def _write_shard(faces: Faces, path: Path, sample_ids: Int64s) -> list[Found]:
    from webdataset.writer import TarWriter  # type: ignore[import-untyped,unused-ignore]

    with atomic_write(path) as temporary:
        with (
            temporary.open("wb", buffering=1 << 20) as file,
            TarWriter(file, encoder=False, user="gkd", group="gkd", mtime=0) as tar,
        ):
            for index in sample_ids.tolist():
                encoded, label = read_image(faces, index), int(faces.labels[index])
                tar.write({"__key__": _key(index), "cls": str(label).encode(), _suffix(faces, index, encoded): encoded})
        found = scan_shard(temporary)
        if not _is_expected(faces, found, sample_ids):
            raise DataError(f"{path}: does not read back as it was written; is the disk full or damaged?")
    return found


def _scan_finished(faces: Faces, path: Path, sample_ids: Int64s) -> list[Found] | None:
    """What an earlier run wrote, if it is as it should be."""
    if not path.exists():
        return None
    try:
        found = scan_shard(path)
    except DataError as error:
        _log.warning("%s; it is written again", error)
        return None
    if _is_expected(faces, found, sample_ids):
        return found
    _log.warning("%s: does not hold what it should; it is written again", path)
    return None


def _is_expected(faces: Faces, found: list[Found], sample_ids: Int64s) -> bool:
    expected = zip(map(_key, sample_ids.tolist()), faces.labels[sample_ids].tolist(), strict=True)
    return [(image.key, image.label) for image in found] == list(expected)


def _key(index: int) -> str:
    return f"{index:09d}"


def _suffix(faces: Faces, index: int, encoded: bytes) -> str:
    kind = image_format(encoded)
    if kind is None:
        raise DataError(
            f"{faces.describe(index)}: not a JPEG, PNG, BMP or WebP image (begins with {encoded[:8]!r}); "
            "`prepare.py verify` lists such records"
        )
    return _SUFFIXES[kind]


def _check_settings(faces: Faces, images_per_shard: int, seed: int) -> None:
    if images_per_shard < 1:
        raise ConfigError(f"images per shard must be at least 1, got {images_per_shard}")
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, got {seed}")
    if len(faces) > MAX_IMAGES:
        raise DataError(f"{faces.path}: {len(faces):,} images, but an index of shards holds {MAX_IMAGES:,}")
    if len(faces) > images_per_shard * _MAX_SHARDS:
        raise ConfigError(f"{images_per_shard} images per shard give more than {_MAX_SHARDS:,} shards; take more")


def _check_names(faces: Faces) -> None:
    for name in faces.identity_names or ():
        try:
            is_fit = name.encode("utf-8").decode("utf-8").splitlines() == [name]
        except UnicodeEncodeError:
            is_fit = False
        if not is_fit:
            raise DataError(f"{faces.path}: the identity name {name!r} is no line of UTF-8 text; rename the identity")


def _are_all_there(out: Path, shards: tuple[Shard, ...]) -> bool:
    paths = [out / shard.name for shard in shards]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
    return sizes == [shard.num_bytes for shard in shards]
