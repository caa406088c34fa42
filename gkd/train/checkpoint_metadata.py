"""A reader of DCP's `.metadata` that runs nothing the file names.

The file is a pickle. Every class it may name is replaced by an empty stand-in made for this one read, so that a
hostile file can neither call nor alter anything; what the stand-ins caught is then checked field by field.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gkd.core.errors import CheckpointError, GkdError
from gkd.core.files import read_bounded, restricted_unpickle

METADATA_NAME = ".metadata"
_MAX_METADATA_BYTES = 256 << 20
_MAX_DIMS = 64
_MAX_CHUNKS = 4096
# What torch.save adds to the numbers of one tensor.
_MAX_OVERHEAD_BYTES = 1 << 20
_MODULE = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    (_MODULE, "Metadata"),
    (_MODULE, "TensorStorageMetadata"),
    (_MODULE, "BytesStorageMetadata"),
    (_MODULE, "ChunkStorageMetadata"),
    (_MODULE, "TensorProperties"),
    (_MODULE, "MetadataIndex"),
    (_MODULE, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
}


@dataclass(frozen=True)
class StoredChunk:
    """A box of a tensor and where its bytes lie: `offsets` and `sizes` in elements, the rest in bytes of `file`."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start_byte: int
    num_bytes: int


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint; its chunks cover it exactly."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]


class _Record:
    """Catches the constructor's arguments and the state that a pickle gives, and does nothing with them."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


def read_stored_tensors(folder: Path, file_sizes: dict[str, int]) -> dict[str, StoredTensor]:
    """The tensors that a checkpoint holds, by name.

    Args:
        folder: the checkpoint.
        file_sizes: bytes of every file that the checkpoint's marker lists; no other file may be named.

    Raises:
        CheckpointError: the file is missing or damaged, wants to run code, holds anything but tensors, names a file
            outside the folder, or its chunks do not cover a tensor.
    """
    path = folder / METADATA_NAME
    try:
        contents = restricted_unpickle(read_bounded(path, _MAX_METADATA_BYTES), _stand_ins(), str(path))
        return _parse(contents, file_sizes)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except GkdError as error:
        raise CheckpointError(f"{error}; give another checkpoint") from error
    except Exception as error:  # a hostile pickle can raise anything
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}; give another checkpoint") from error


def _stand_ins() -> dict[tuple[str, str], object]:
    allowed: dict[tuple[str, str], object] = {key: type(key[1], (_Record,), {}) for key in _RECORDS}
    allowed["torch", "Size"] = type("Size", (tuple,), {})
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype):
            allowed["torch", name] = value
    return allowed


def _parse(contents: object, file_sizes: dict[str, int]) -> dict[str, StoredTensor]:
    fields = _fields(contents, "Metadata")
    locations = {_key(index): _location(info, file_sizes) for index, info in _dict(fields["storage_data"]).items()}
    tensors = {}
    for name, entry in _dict(fields["state_dict_metadata"]).items():
        if type(entry).__name__ == "BytesStorageMetadata":
            raise CheckpointError(f"`{name}` is a pickled object; only tensors are read")
        tensors[name] = _tensor(name, _fields(entry, "TensorStorageMetadata"), locations)
    return tensors


def _tensor(name: str, fields: dict[str, Any], locations: dict[Any, tuple[str, int, int]]) -> StoredTensor:
    properties = fields["properties"].state
    dtype = properties[0] if isinstance(properties, tuple) else None
    if not isinstance(name, str) or not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"`{name}` has no dtype")
    shape = _integers(fields["size"])
    records = fields["chunks"]
    if not isinstance(records, list) or len(records) > _MAX_CHUNKS:
        raise CheckpointError(f"`{name}` has a malformed list of chunks")
    chunks = tuple(_chunk(name, _fields(record, "ChunkStorageMetadata"), locations) for record in records)
    _check_cover(name, shape, chunks)
    for chunk in chunks:
        if chunk.num_bytes > math.prod(chunk.sizes) * dtype.itemsize + _MAX_OVERHEAD_BYTES:
            raise CheckpointError(f"`{name}` claims {chunk.num_bytes} bytes for a chunk of shape {chunk.sizes}")
    return StoredTensor(dtype, shape, chunks)


def _chunk(name: str, fields: dict[str, Any], locations: dict[Any, tuple[str, int, int]]) -> StoredChunk:
    offsets, sizes = _integers(fields["offsets"]), _integers(fields["sizes"])
    if (name, offsets) not in locations:
        raise CheckpointError(f"`{name}` has no bytes for its chunk at {offsets}")
    return StoredChunk(offsets, sizes, *locations[name, offsets])


def _check_cover(name: str, shape: tuple[int, ...], chunks: tuple[StoredChunk, ...]) -> None:
    for chunk in chunks:
        is_fitting = len(chunk.offsets) == len(chunk.sizes) == len(shape)
        if not is_fitting or any(o + s > n for o, s, n in zip(chunk.offsets, chunk.sizes, shape, strict=True)):
            raise CheckpointError(f"`{name}` of shape {shape} has a chunk that lies outside it")
    is_overlapping = any(_overlap(first, second) for first, second in itertools.combinations(chunks, 2))
    if is_overlapping or sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
        raise CheckpointError(f"the chunks of `{name}` do not cover its shape {shape} exactly")


def _overlap(first: StoredChunk, second: StoredChunk) -> bool:
    sides = zip(first.offsets, first.sizes, second.offsets, second.sizes, strict=True)
    return all(a < b + m and b < a + n for a, n, b, m in sides)


def _location(info: object, file_sizes: dict[str, int]) -> tuple[str, int, int]:
    fields = _fields(info, "_StorageInfo")
    file = fields["relative_path"]
    start_byte, num_bytes = _integers((fields["offset"], fields["length"]))
    if file not in file_sizes:
        raise CheckpointError(f"it names {file!r}, which is no file of this checkpoint")
    if start_byte + num_bytes > file_sizes[file] or fields.get("transform_descriptors"):
        raise CheckpointError(f"it names bytes of {file!r} that are not there, or transformed ones")
    return file, start_byte, num_bytes


def _key(index: object) -> tuple[str, tuple[int, ...]]:
    fields = _fields(index, "MetadataIndex")
    # DCP leaves the offset out for what is no tensor.
    return fields["fqn"], _integers(fields.get("offset") or ())


def _fields(record: object, kind: str) -> dict[str, Any]:
    if not isinstance(record, _Record) or type(record).__name__ != kind:
        raise CheckpointError(f"it has a {type(record).__name__} where a {kind} is due")
    return _dict(getattr(record, "state", {}))


def _dict(value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"it has a {type(value).__name__} where a dict is due")
    return value


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MAX_DIMS:
        raise CheckpointError(f"it has {value!r} where a shape is due")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in value):
        raise CheckpointError(f"it has {value!r} where a shape is due")
    return tuple(value)
