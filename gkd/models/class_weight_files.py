"""Class weights from the training checkpoints of this and other projects.

Shapes: C classes, D embedding dimension; W ranks, of which rank r holds C // W + (r < C % W) classes in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd.core.errors import CheckpointError
from gkd.models.contents import check_tensor
from gkd.models.head_file import FORMAT as HEAD_FORMAT
from gkd.models.head_file import load_head
from gkd.models.safetensors_file import is_safetensors, read_safetensors
from gkd.models.torch_archive import read_torch_archive
from gkd.models.weight_sources import HEAD_CONTAINER, unwrap

HEAD_FILES = ("head.pt", "head.safetensors")


@dataclass(frozen=True)
class ClassWeightName:
    """One way in which a project names its class weights: (D, C) where `is_transposed`, else (C, D)."""

    name: str
    project: str
    is_transposed: bool


NAMES = (
    ClassWeightName("head.kernel", "AdaFace", is_transposed=True),
    ClassWeightName("head.weight", "FaceX-Zoo", is_transposed=True),
    ClassWeightName("module.fc.weight", "MagFace", is_transposed=True),
    ClassWeightName("parallel_fc.weight", "MagFace", is_transposed=False),
    ClassWeightName("kernel", "AdaDistill", is_transposed=True),
)
SHARD_NAMES = ("checkpoint_gpu_{}.pt", "rank_{}_softmax_weight.pt")


def load_class_weights(path: str | Path) -> tuple[Tensor, str]:
    """Class weights (C, D), fp32 on the CPU, and in words where they are from.

    Reads `head.pt` and `head.safetensors` of this project, checkpoints of AdaFace, FaceX-Zoo, MagFace and AdaDistill,
    and arcface_torch's, where each rank has a file of its own: any one of them, or their folder, stands for all. Ranks
    missing at the end of a row of files do not show: compare C with the data.

    Raises:
        CheckpointError: missing, damaged or unsafe, without class weights, or one rank's file is missing or has a size
            that does not fit the others'.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    for pattern in SHARD_NAMES:
        if _rank(pattern, path) is not None:
            return _load_shards(path.parent, pattern)
    return _load_file(path)


def class_weight_name(names: Mapping[str, Any]) -> ClassWeightName | None:
    """Which of the names of a state dict is that of class weights."""
    return next((known for known in NAMES if known.name in names), None)


def _load_folder(folder: Path) -> tuple[Tensor, str]:
    found = [pattern for pattern in SHARD_NAMES if _shards(folder, pattern)]
    if len(found) > 1:
        raise CheckpointError(f"{folder}: holds {_words(found)} of several ranks; name one of the files")
    if found:
        return _load_shards(folder, found[0])
    for name in HEAD_FILES:
        if (folder / name).is_file():
            return _load_file(folder / name)
    raise CheckpointError(f"{folder}: holds none of {_words((*SHARD_NAMES, *HEAD_FILES))}; name a file with them")


def _load_file(path: Path) -> tuple[Tensor, str]:
    content = read_safetensors(path)[0] if is_safetensors(path) else read_torch_archive(path).content
    is_ours = isinstance(content, dict) and (content.get("format") == HEAD_FORMAT or "class_weights" in content)
    if is_ours:
        weights, _ = load_head(path)
        return weights.float(), f"{len(weights):,} classes of a head file of this project"
    _, inner = unwrap(content)
    known = class_weight_name(inner) if isinstance(inner, dict) else None
    if known is None:
        raise CheckpointError(f"{path}: holds no class weights under {_words(tuple(entry.name for entry in NAMES))}")
    assert isinstance(inner, dict)
    weights = _checked(inner[known.name], f"{path}: {known.name}")
    weights = weights.T.contiguous() if known.is_transposed else weights
    return weights, f"{len(weights):,} classes under `{known.name}`, as {known.project} writes them"


def _load_shards(folder: Path, pattern: str) -> tuple[Tensor, str]:
    files = _shards(folder, pattern)
    for rank in range(max(files) + 1):
        if rank not in files:
            raise CheckpointError(
                f"{folder / pattern.format(rank)}: no such file, but there is one of rank {max(files)}"
            )
    shards, steps = [], {}
    for rank in range(len(files)):
        shard, steps[rank] = _read_shard(files[rank])
        shards.append(shard)
    _check_shards(files, shards, steps)
    weights = torch.cat(shards)
    return weights, f"{len(weights):,} classes of arcface_torch, from the files of {len(files)} ranks"


def _read_shard(path: Path) -> tuple[Tensor, object]:
    """One rank's class weights and, where the file says it, the step at which they were written."""
    content = read_torch_archive(path).content
    if isinstance(content, Tensor):
        return _checked(content, str(path)), None
    head = content.get(HEAD_CONTAINER) if isinstance(content, dict) else None
    if not isinstance(head, dict) or not isinstance(head.get("weight"), Tensor):
        raise CheckpointError(f"{path}: holds no class weights: neither a tensor nor `{HEAD_CONTAINER}` with `weight`")
    step = content.get("global_step")
    return _checked(head["weight"], f"{path}: {HEAD_CONTAINER}.weight"), step if isinstance(step, int) else None


def _check_shards(files: Mapping[int, Path], shards: list[Tensor], steps: Mapping[int, object]) -> None:
    num_classes, num_ranks = sum(len(shard) for shard in shards), len(shards)
    for rank, shard in enumerate(shards):
        expected = num_classes // num_ranks + (rank < num_classes % num_ranks)
        if len(shard) != expected:
            raise CheckpointError(
                f"{files[rank]}: has {len(shard):,} classes, but {num_classes:,} classes over {num_ranks} ranks give "
                f"it {expected:,}; this file or another is missing, or of another run"
            )
        if shard.shape[1] != shards[0].shape[1]:
            raise CheckpointError(
                f"{files[rank]}: has class weights of {shard.shape[1]} dimensions, and {files[0]} of "
                f"{shards[0].shape[1]}; they are of different runs"
            )
        if steps[rank] != steps[0]:
            raise CheckpointError(
                f"{files[rank]}: was written at step {steps[rank]}, and {files[0]} at step {steps[0]}; they do not "
                "belong together"
            )


def _checked(weights: object, where: str) -> Tensor:
    if not isinstance(weights, Tensor) or weights.dim() != 2 or not weights.dtype.is_floating_point:
        found = f"{weights.dtype} {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        raise CheckpointError(f"{where} must be a float tensor of two dimensions, got {found}")
    if not weights.numel():
        raise CheckpointError(f"{where} is empty")
    return check_tensor(weights, where).float()


def _shards(folder: Path, pattern: str) -> dict[int, Path]:
    """The files of all ranks by rank."""
    ranks = ((_rank(pattern, file), file) for file in folder.glob(pattern.format("*")))
    return {rank: file for rank, file in ranks if rank is not None}


def _rank(pattern: str, path: Path) -> int | None:
    found = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(0|[1-9]\d{0,4})"), path.name)
    return int(found.group(1)) if found else None


def _words(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(name.replace("{}", "*") for name in names)
