"""Checks of what a weight file holds: plain values and tensors. Everything in a file is taken to be hostile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd.core.errors import CheckpointError

MAX_DEPTH = 8
MAX_ITEMS = 10_000_000
MAX_INTEGER = 2**63 - 1
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)


def check_format(content: object, path: Path, name: str, version: int, fields: set[str]) -> dict[str, Any]:
    """`content` if it is a dict of that format and version with exactly these fields beside the two.

    Raises:
        CheckpointError: it is not, with what was found.
    """
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or type(found) is not str or found != name:
        raise CheckpointError(f"{path} is not a {name} file" + (f" but a {found} file" if type(found) is str else ""))
    found_version = content.get("format_version")
    if type(found_version) is not int or found_version != version:
        raise CheckpointError(
            f"{path} has {name} version {str(found_version)[:80]}, this gkd reads version {version}; update gkd"
        )
    expected = fields | {"format", "format_version"}
    if set(content) != expected:
        differing = sorted(map(str, set(content) ^ expected))
        raise CheckpointError(f"{path}: fields missing or unknown: {', '.join(differing)}; the file is damaged")
    return content


def check_plain(value: object, where: str) -> Any:
    """`value` with tuples as lists, if it is made of None, bool, int, finite float, str, lists and str-keyed dicts.

    Raises:
        CheckpointError: anything else, naming the place; or too deep, or too many items.
    """
    return _plain(value, where, 0, iter(range(MAX_ITEMS)))


def _plain(value: object, where: str, depth: int, budget: Iterator[int]) -> Any:
    # A list that holds one list many times, and so on, is small in a file and endless when walked.
    if depth > MAX_DEPTH or next(budget, None) is None:
        raise CheckpointError(
            f"{where[:200]} is nested more than {MAX_DEPTH} deep or among more than {MAX_ITEMS} items"
        )
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]", depth + 1, budget) for index, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise CheckpointError(f"{where} has the key {str(key)[:80]}; keys must be text")
        return {key: _plain(item, f"{where}.{key}", depth + 1, budget) for key, item in value.items()}
    return _plain_scalar(value, where)


def _plain_scalar(value: object, where: str) -> object:
    if type(value) is int and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise CheckpointError(f"{where} is an integer of more than 64 bits")
    if type(value) is float and not math.isfinite(value):
        raise CheckpointError(f"{where} must be finite, got {value}")
    if value is not None and type(value) not in (bool, int, float, str):
        raise CheckpointError(
            f"{where} must be a plain value (text, number, list, dict or None), got {type(value).__name__}"
        )
    return value


def check_tensors(value: object, where: str) -> dict[str, Tensor]:
    """`value` as a dict of ordinary finite CPU tensors, each owning its memory.

    Raises:
        CheckpointError: it is not a dict of named tensors, or one of them is unusual or not finite.
    """
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"{where} must be a dict of named tensors, got {type(value).__name__} without any")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{where}: {str(name)[:80]!r} is not a tensor but {type(tensor).__name__}; pass a file that holds "
                "the state dict of one network and nothing else"
            )
        _check_ordinary(tensor, f"{where}: {name}")
    _check_size(list(value.values()), where)
    return {name: _own_finite(tensor, f"{where}: {name}") for name, tensor in value.items()}


def check_tensor(tensor: Tensor, where: str) -> Tensor:
    """A copy of `tensor` that owns its memory, if it is dense, on the CPU and finite.

    Raises:
        CheckpointError: it is not.
    """
    _check_ordinary(tensor, where)
    _check_size([tensor], where)
    return _own_finite(tensor, where)


def _check_ordinary(tensor: Tensor, where: str) -> None:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise CheckpointError(f"{where} is not an ordinary tensor: {tensor.layout} on {tensor.device.type}")
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"{where} is {tensor.dtype}, a type no backbone or head has")


def _check_size(tensors: list[Tensor], where: str) -> None:
    # Strides of 0 and shared memory let a small file claim any size, and copies would then take the memory.
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > sum(held.values()):
        raise CheckpointError(f"{where} claims more values than it holds; the file is damaged")


def _own_finite(tensor: Tensor, where: str) -> Tensor:
    own = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not own.isfinite().all():
        count = int((~own.isfinite()).sum())
        raise CheckpointError(f"{where} has {count} values that are NaN or infinite; the training run diverged")
    return own


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
