"""The files of kept embeddings: what they belong to, how large they are, and how they are made and opened.

<folder>/store.json            what the embeddings belong to, see `Origin`
<folder>/embeddings.<type>     f16 or bf16, (n, 2, D): of each image and of its mirror image, unit length; NaN: no image
<folder>/labels.i32            int32 (n,); -1: the record could not be read
<folder>/done.u8               one byte a block of images: 1 once the block is on disk

Shapes: n images of the data set, D embedding dimension.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gkd.core.errors import CheckpointError, DataError
from gkd.core.files import atomic_write, locked_folder, read_bounded
from gkd.data import FaceData
from gkd.inference.embed import input_size
from gkd.inference.network_digest import network_digest
from gkd.models import InputSpec

STORE_FILE = "store.json"
FORMAT = "gkd.embeddings"
FORMAT_VERSION = 2
BLOCK_SIZE = 1024
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SUFFIXES = {"float16": "f16", "bfloat16": "bf16"}
_MAX_STORE_BYTES = 1 << 20


@dataclass(frozen=True)
class Origin:
    """What embeddings belong to. Two stores with equal origins hold equal embeddings.

    data: the data set's fingerprint. network: SHA-256 of the network's weights. input: its input conversion and image
    size as text. dtype: of what is kept, float16 or bfloat16. precision: of the network's forward pass, fp32 or bf16.
    """

    data: str
    network: str
    input: str
    num_images: int
    embedding_dim: int
    dtype: str = "float16"
    precision: str = "fp32"

    @property
    def embeddings_name(self) -> str:
        """The file of the embeddings."""
        return f"embeddings.{_SUFFIXES[self.dtype]}"

    @property
    def num_blocks(self) -> int:
        """Blocks of images, the last one perhaps not full."""
        return -(-self.num_images // BLOCK_SIZE)

    def block_range(self, block: int) -> range:
        """The images of a block."""
        return range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, self.num_images))

    def sizes(self) -> dict[str, int]:
        """The bytes of every file."""
        return {
            self.embeddings_name: self.num_images * 2 * self.embedding_dim * 2,
            "labels.i32": self.num_images * 4,
            "done.u8": self.num_blocks,
        }


def origin_of(
    backbone: nn.Module,
    input_spec: InputSpec,
    dataset: FaceData,
    *,
    dtype: str = "float16",
    precision: str = "fp32",
) -> Origin:
    """What the embeddings of `dataset` by `backbone` belong to."""
    height, width = input_size(backbone)
    return Origin(
        data=dataset.fingerprint,
        network=network_digest(backbone),
        input=f"{input_spec}, {height}x{width}",
        num_images=len(dataset),
        embedding_dim=int(backbone.embedding_dim),  # type: ignore[arg-type]
        dtype=dtype,
        precision=precision,
    )


def size_text(num_bytes: int) -> str:
    """Such as `12.0 GB`, or `5.0 MB` below one of them."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def num_done(folder: Path, origin: Origin) -> int:
    """Images of a store that have been embedded so far."""
    done = np.fromfile(folder / "done.u8", np.uint8, origin.num_blocks)
    return sum(len(origin.block_range(int(block))) for block in np.flatnonzero(done))


def store_bytes(origin: Origin) -> int:
    """What a store takes on disk."""
    return sum(origin.sizes().values())


def missing_bytes(folder: Path, origin: Origin) -> int:
    """What a store has yet to take: its files have their size from the start, and their space where they are filled."""
    taken = sum((folder / name).stat().st_blocks * 512 for name in origin.sizes())
    return max(0, store_bytes(origin) - taken)


def free_bytes(folder: Path) -> int:
    """What may still be written beside `folder`."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def require_free_space(folder: Path, origin: Origin, num_bytes: int) -> None:
    """Refuse a disk on which `num_bytes` more do not fit.

    Raises:
        DataError: as above.
    """
    free = free_bytes(folder)
    if num_bytes > free:
        raise DataError(
            f"{folder}: the embeddings of {origin.num_images:,} images take {size_text(num_bytes)} more and "
            f"{size_text(free)} are free; choose a folder on a larger disk"
        )


def make_files(folder: Path, origin: Origin) -> None:
    """Make the files of an empty store; a folder without `store.json` holds nothing that counts.

    Raises:
        DataError: the disk is too small, or cannot be written.
    """
    try:
        require_free_space(folder, origin, store_bytes(origin))
        for name, size in origin.sizes().items():
            with (folder / name).open("wb") as file:
                file.truncate(size)
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **_values(origin)}
        with atomic_write(folder / STORE_FILE) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from error


def hold_store(folder: Path, owner: str) -> AbstractContextManager[None]:
    """Keep other processes from filling `folder`; one of them that holds it already is an error.

    Args:
        owner: the setting that names the folder, for messages.
    """
    return locked_folder(folder, owner, "another process is computing a teacher's embeddings")


def check_origin(folder: Path, origin: Origin) -> None:
    """Refuse a folder whose embeddings are of another origin.

    Raises:
        CheckpointError: as above, with all that differs; or `store.json` is damaged.
    """
    stored, wanted = read_values(folder / STORE_FILE), _values(origin)
    different = [
        f"{key}: {str(stored.get(key))[:80]} there, {str(value)[:80]} now"
        for key, value in wanted.items()
        if stored.get(key) != value
    ]
    if different:
        raise CheckpointError(
            f"{folder}: holds embeddings of another network or of other data ({'; '.join(different)}); name another "
            "folder, or remove this one to make them anew"
        )


def read_origin(folder: Path) -> Origin:
    """What the embeddings in `folder` say that they belong to.

    Raises:
        CheckpointError: there are none, or `store.json` is damaged.
    """
    path = folder / STORE_FILE
    if not path.exists():
        raise CheckpointError(f"{folder}: holds no embeddings ({path.name} is missing)")
    values = read_values(path)
    kinds = Origin.__annotations__
    given = {name: values.get(name) for name in kinds}
    if not all(type(value) is (int if kinds[name] == "int" else str) for name, value in given.items()):
        raise CheckpointError(f"{path}: damaged: a value is missing or of another kind; remove the folder")
    origin = Origin(**given)  # type: ignore[arg-type]
    if origin.dtype not in DTYPES or min(origin.num_images, origin.embedding_dim) < 1:
        raise CheckpointError(f"{path}: damaged: it tells of embeddings that cannot be; remove the folder")
    return origin


def read_values(path: Path) -> Mapping[str, Any]:
    """What `store.json` holds.

    Raises:
        CheckpointError: it is damaged, or of another version.
    """
    try:
        values = json.loads(read_bounded(path, _MAX_STORE_BYTES))
    except (DataError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove the folder to make it anew") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path}: damaged: it is not a store of embeddings; name another folder")
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has version {str(version)[:20]} and this gkd reads version {FORMAT_VERSION}; remove the folder "
            "to make the embeddings anew"
        )
    return values


def map_file(path: Path, size: int) -> mmap.mmap:
    """The bytes of a file, whose size must be `size`, to be read only; what others write to it later shows.

    Raises:
        CheckpointError: the file is missing, of another size, or cannot be opened.
    """
    try:
        found = path.stat().st_size
        if found == size:
            with path.open("rb") as file:
                # Private, since libraries want memory that could be written; nobody writes.
                return mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened: {error.strerror}; remove the folder to make it anew"
        ) from error
    raise CheckpointError(f"{path}: has {found} bytes instead of {size}; remove the folder to make it anew")


def _values(origin: Origin) -> dict[str, Any]:
    return {**vars(origin), "block_size": BLOCK_SIZE}
