"""`head.pt`: the class weights of a trained head and the plain values that make them usable later.

A dict that `torch.load(weights_only=True)` takes: `format`, `format_version`, `class_weights` (C, D), `meta`.
`head.safetensors` beside it holds the same for other tools. Both are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gkd.core.errors import CheckpointError
from gkd.models.contents import check_format, check_plain, check_tensor
from gkd.models.safetensors_file import read_weight_file, write_both

FORMAT = "gkd.head"
FORMAT_VERSION = 1
TENSOR_NAME = "class_weights"


def save_head(path: str | Path, class_weights: Tensor, meta: Mapping[str, Any]) -> None:
    """Write class weights and plain values, whole or not at all, and a `.safetensors` file beside.

    Args:
        path: the file to write; the other has the same name with the suffix `.safetensors`.
        class_weights: (C, D), one row a class.
        meta: plain values by name: the margin's name and scale, the data's fingerprint, `identity_names` (C names or
            None), `num_classes`.

    Raises:
        CheckpointError: weights that are not a finite float (C, D), values that are not plain, or a `num_classes` or
            `identity_names` that disagrees with C.
    """
    weights = _check_weights(class_weights.cpu(), Path(path))
    fields = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "meta": _check_meta(dict(meta), len(weights), Path(path)),
    }
    write_both(Path(path), fields, {TENSOR_NAME: weights}, {**fields, TENSOR_NAME: weights})


def load_head(path: str | Path) -> tuple[Tensor, dict[str, Any]]:
    """Read what `save_head` wrote: class weights (C, D) on the CPU and the plain values.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or of another format, or its fields disagree.
    """
    path = Path(path)
    content = check_format(read_weight_file(path), path, FORMAT, FORMAT_VERSION, {TENSOR_NAME, "meta"})
    weights = _check_weights(content[TENSOR_NAME], path)
    return weights, _check_meta(content["meta"], len(weights), path)


def _check_weights(weights: object, path: Path) -> Tensor:
    if not isinstance(weights, Tensor) or weights.dim() != 2 or not weights.dtype.is_floating_point:
        found = f"{weights.dtype} {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise CheckpointError(f"{path}: class_weights must be a float tensor (C, D), got {found}")
    return check_tensor(weights, f"{path}: class_weights")


def _check_meta(meta: object, num_classes: int, path: Path) -> dict[str, Any]:
    plain = check_plain(meta, f"{path}: meta")
    if not isinstance(plain, dict):
        raise CheckpointError(f"{path}: meta must be a dict, got {type(meta).__name__}")
    if plain.get("num_classes", num_classes) != num_classes:
        raise CheckpointError(
            f"{path}: num_classes is {plain['num_classes']!r} but the weights have {num_classes} rows"
        )
    names = plain.get("identity_names")
    is_list_of_text = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and not (is_list_of_text and len(names) == num_classes):
        raise CheckpointError(f"{path}: identity_names must be {num_classes} names, one a row of the weights, or None")
    return plain
