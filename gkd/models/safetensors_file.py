"""`.safetensors` beside our own weight files: the same tensors, for tools that read that format.

The other fields of the file (`architecture`, `input`, …) are its metadata, as JSON; `format` is plain text. Nothing in
such a file can run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gkd.core.errors import CheckpointError
from gkd.core.files import GIB, atomic_write, restricted_load_torch

SUFFIX = ".safetensors"
# Readers refuse a header (names, shapes and metadata) above 100 MB.
MAX_METADATA_BYTES = 64 << 20
MAX_BYTES = 16 * GIB
_CODES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def is_safetensors(path: Path) -> bool:
    """Whether a path names such a file."""
    return path.suffix == SUFFIX


def write_both(
    path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], content: Mapping[str, Any]
) -> None:
    """Write `content` to `path` by `torch.save`, and `tensors` with `fields` to a `.safetensors` file beside it.

    Both are written before either takes its place, so a full disk leaves the old pair.

    Args:
        path: the first file; the second has the suffix `.safetensors`.
        fields: plain values.
        tensors: contiguous CPU tensors that share no memory.
        content: what the first file holds.

    Raises:
        CheckpointError: `path` has the second file's suffix, the values are too long for it, or it cannot be written.
    """
    if is_safetensors(path):
        raise CheckpointError(f"{path}: give the name of the .pt file; the {SUFFIX} file is written beside it")
    beside = path.with_suffix(SUFFIX)
    metadata = _metadata(beside, fields)
    with atomic_write(path) as temporary, atomic_write(beside) as temporary_beside:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(content), file)
            _write(temporary_beside, tensors, metadata)
        except (OSError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).split("\n", 1)[0]
            raise CheckpointError(f"{path}: cannot be written: {reason}; see that the disk has space") from error


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The file itself: the header's length, the header as JSON, the numbers.

    The library's own writer shuffles the metadata, and equal contents should make equal files.
    """
    # Large types first, so that each tensor's bytes are aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def read_weight_file(path: Path, name: str | None = None) -> Any:
    """What a weight file holds, whichever of the two kinds it is; nothing in it is checked or trusted.

    Args:
        path: a file of `torch.save`, or one with the suffix `.safetensors`.
        name: in a `.safetensors` file of ours, the field that all its tensors make up; None: each is a field. Of one
            that is not ours the tensors alone are returned.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe.
    """
    if not is_safetensors(path):
        return restricted_load_torch(path)
    tensors, metadata = read_safetensors(path)
    # Other writers use `format` too, such as "pt".
    if not metadata.get("format", "").startswith("gkd."):
        return tensors
    fields = {key: _parse(key, text, path) for key, text in metadata.items()}
    return {**fields, **tensors} if name is None else {**fields, name: tensors}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, on the CPU, and the metadata.

    Raises:
        CheckpointError: the file is missing, is no file, or is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file" if path.exists() else f"{path}: no such file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise CheckpointError(f"{path}: {size:,} bytes is more than the {MAX_BYTES:,} bytes allowed for weights")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).split("\n", 1)[0]
        raise CheckpointError(f"{path}: damaged, truncated or not a .safetensors file ({reason})") from error


def _metadata(path: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    metadata = {name: value if name == "format" else json.dumps(value) for name, value in fields.items()}
    num_bytes = sum(len(text.encode()) for text in metadata.values())
    if num_bytes > MAX_METADATA_BYTES:
        raise CheckpointError(
            f"{path}: the values beside the tensors take {num_bytes:,} bytes, more than the {MAX_METADATA_BYTES:,} "
            f"that a {SUFFIX} file can hold; shorten the identity names"
        )
    return metadata


def _parse(name: str, text: str, path: Path) -> Any:
    if name == "format":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata `{name[:80]}` is not valid JSON; the file is damaged") from error
