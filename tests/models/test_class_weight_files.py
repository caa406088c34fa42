"""Class weights from checkpoints of this and other projects, in one file or one a rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gkd.core.class_shard import ClassShard
from gkd.core.errors import CheckpointError
from gkd.models import load_class_weights, save_head

NUM_CLASSES, DIM = 11, 4
WEIGHTS = torch.arange(float(NUM_CLASSES * DIM)).reshape(NUM_CLASSES, DIM)
NETWORK = {"model.input_layer.0.weight": torch.zeros(2, 3, 3, 3)}

SINGLE: dict[str, tuple[Any, str]] = {
    "AdaFace": (
        {"epoch": 1, "state_dict": {**NETWORK, "head.kernel": WEIGHTS.T, "head.t": torch.ones(1)}},
        "head.kernel",
    ),
    "FaceX-Zoo": ({"state_dict": {"head.weight": WEIGHTS.T}, "epoch": 1, "batch_id": 2}, "head.weight"),
    "MagFace on one": ({"arch": "x", "state_dict": {"module.fc.weight": WEIGHTS.T}}, "module.fc.weight"),
    "MagFace": ({"arch": "x", "state_dict": {"parallel_fc.weight": WEIGHTS}}, "parallel_fc.weight"),
    "AdaDistill": ({"kernel": WEIGHTS.T}, "kernel"),
}


def write_shards(folder: Path, num_ranks: int, kind: str, num_classes: int = NUM_CLASSES) -> list[Path]:
    """One file a rank, as arcface_torch writes them."""
    paths, start = [], 0
    for rank in range(num_ranks):
        size = num_classes // num_ranks + (rank < num_classes % num_ranks)
        rows = WEIGHTS.repeat(9, 1)[start : start + size].clone()
        start += size
        if kind == "new":
            content: Any = {
                "epoch": 2,
                "global_step": 9,
                "state_dict_backbone": {"conv1.weight": torch.zeros(2)},
                "state_dict_softmax_fc": {"weight": rows},
                "state_optimizer": {"state": {}, "param_groups": []},
            }
            paths.append(folder / f"checkpoint_gpu_{rank}.pt")
        else:
            content = rows
            paths.append(folder / f"rank_{rank}_softmax_weight.pt")
            torch.save(torch.zeros_like(rows), folder / f"rank_{rank}_softmax_weight_mom.pt")
        torch.save(content, paths[-1])
    return paths


@pytest.mark.parametrize("kind", SINGLE)
def test_one_file_of_each_project(kind: str, tmp_path: Path) -> None:
    content, name = SINGLE[kind]
    torch.save(content, tmp_path / "w.pt")
    weights, description = load_class_weights(tmp_path / "w.pt")
    assert torch.equal(weights, WEIGHTS)
    assert weights.is_contiguous()
    assert weights.dtype == torch.float32
    assert description == f"11 classes under `{name}`, as {kind.removesuffix(' on one')} writes them"


@pytest.mark.parametrize("name", ["head.pt", "head.safetensors", ""])
def test_our_own_head(name: str, tmp_path: Path) -> None:
    save_head(tmp_path / "head.pt", WEIGHTS.double(), {"scale": 64.0})
    weights, description = load_class_weights(tmp_path / name)
    assert torch.equal(weights, WEIGHTS)
    assert weights.dtype == torch.float32
    assert description == "11 classes of a head file of this project"


def test_class_weights_in_a_foreign_safetensors_file(tmp_path: Path) -> None:
    save_file({"head.kernel": WEIGHTS.T.contiguous().half()}, tmp_path / "w.safetensors")
    weights, _ = load_class_weights(tmp_path / "w.safetensors")
    assert torch.equal(weights, WEIGHTS)


@pytest.mark.parametrize("kind", ["new", "old"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 11])
@pytest.mark.parametrize("is_folder", [True, False])
def test_all_ranks_are_joined_in_order(kind: str, num_ranks: int, is_folder: bool, tmp_path: Path) -> None:
    paths = write_shards(tmp_path, num_ranks, kind)
    weights, description = load_class_weights(tmp_path if is_folder else paths[-1])
    assert torch.equal(weights, WEIGHTS)
    assert description == f"11 classes of arcface_torch, from the files of {num_ranks} ranks"


def test_ranks_above_nine_stand_in_order(tmp_path: Path) -> None:
    write_shards(tmp_path, 12, "new", 30)
    weights, _ = load_class_weights(tmp_path)
    assert torch.equal(weights, WEIGHTS.repeat(3, 1)[:30])


@pytest.mark.parametrize("kind", ["new", "old"])
@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_rank_is_named(kind: str, missing: int, tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 4, kind)
    paths[missing].unlink()
    with pytest.raises(CheckpointError, match=rf"{paths[missing].name}: no such file, but there is one of rank 3"):
        load_class_weights(tmp_path)


def replaced(path: Path, weight: Tensor, **fields: Any) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({**content, "state_dict_softmax_fc": {"weight": weight}, **fields}, path)


@pytest.mark.parametrize(
    ("weight", "fields", "message"),
    [
        (
            torch.zeros(2, DIM),
            {},
            r"gpu_1\.pt: has 2 classes, but 10 classes over 4 ranks give it 3; this file or another",
        ),
        (torch.zeros(3, 5), {}, r"gpu_1\.pt: has class weights of 5 dimensions, and .*gpu_0\.pt of 4"),
        (torch.zeros(3, DIM), {"global_step": 8}, r"gpu_1\.pt: was written at step 8, and .*gpu_0\.pt at step 9"),
        (torch.zeros(3), {}, r"gpu_1\.pt: state_dict_softmax_fc\.weight must be a float tensor of two dimensions"),
        (torch.zeros(3, DIM, dtype=torch.int64), {}, r"must be a float tensor of two dimensions, got torch\.int64"),
        (torch.full((3, DIM), float("nan")), {}, r"12 values that are NaN"),
        (torch.zeros(0, DIM), {}, r"is empty"),
    ],
)
def test_a_rank_that_does_not_belong_is_named(weight: Tensor, fields: Any, message: str, tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 4, "new")
    replaced(paths[1], weight, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_class_weights(paths[0])


def test_the_sizes_are_those_of_our_own_shards(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 4, "old")
    sizes = [len(torch.load(path, weights_only=True)) for path in paths]
    assert sizes == [ClassShard.of_rank(NUM_CLASSES, rank, 4).size for rank in range(4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight": WEIGHTS}, r"w\.pt: holds no class weights under head\.kernel, head\.weight, "),
        ({"state_dict": {"head.kernel": 3}}, r"w\.pt: head\.kernel must be a float tensor of two dimensions, got int"),
        ([1, 2], r"w\.pt: holds no class weights"),
        ({"format": "gkd.head", "format_version": 9}, "has gkd.head version 9"),
    ],
)
def test_files_without_class_weights(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message):
        load_class_weights(tmp_path / "w.pt")


def test_folders_without_class_weights_or_with_two_kinds(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"holds none of checkpoint_gpu_\*\.pt, rank_\*_softmax_weight\.pt, head\.pt"
    ):
        load_class_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_class_weights(tmp_path / "none")
    write_shards(tmp_path, 2, "new")
    write_shards(tmp_path, 2, "old")
    with pytest.raises(CheckpointError, match="of several ranks; name one of the files"):
        load_class_weights(tmp_path)
    assert torch.equal(load_class_weights(tmp_path / "rank_1_softmax_weight.pt")[0], WEIGHTS)


def test_a_shard_without_class_weights(tmp_path: Path) -> None:
    torch.save({"state_dict_backbone": {}}, tmp_path / "checkpoint_gpu_0.pt")
    with pytest.raises(
        CheckpointError, match=r"gpu_0\.pt: holds no class weights: neither a tensor nor `state_dict_soft"
    ):
        load_class_weights(tmp_path)
