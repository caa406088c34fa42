"""head.pt: round trip, agreement of its fields, hostile files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gkd.core.errors import CheckpointError
from gkd.models import load_head, load_student, safetensors_file, save_head

META = {"margin": "arcface", "scale": 64.0, "data": "ab12", "identity_names": ["a", "b", "c"], "num_classes": 3}


def weights() -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def test_round_trip(tmp_path: Path) -> None:
    save_head(tmp_path / "head.pt", torch.nn.Parameter(weights()), META)
    loaded, meta = load_head(tmp_path / "head.pt")
    assert torch.equal(loaded, weights())
    assert not loaded.requires_grad
    assert meta == META


def test_a_slice_is_saved_without_the_rest(tmp_path: Path) -> None:
    save_head(tmp_path / "head.pt", torch.zeros(1_000_000, 4)[:3], {})
    assert (tmp_path / "head.pt").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("tensor", "meta", "message"),
    [
        (torch.zeros(3), {}, r"class_weights must be a float tensor \(C, D\), got torch.float32 \(3,\)"),
        (torch.zeros(3, 4).long(), {}, r"class_weights must be a float tensor \(C, D\), got torch.int64"),
        (torch.full((3, 4), torch.nan), {}, "class_weights has 12 values that are NaN or infinite"),
        (torch.zeros(3, 4), {"num_classes": 4}, "num_classes is 4 but the weights have 3 rows"),
        (torch.zeros(3, 4), {"identity_names": ["a"]}, "identity_names must be 3 names"),
        (torch.zeros(3, 4), {"identity_names": [1, 2, 3]}, "identity_names must be 3 names"),
        (torch.zeros(3, 4), {"scale": torch.ones(1)}, r"meta\.scale must be a plain value"),
    ],
)
def test_fields_are_checked_both_ways(tensor: torch.Tensor, meta: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "head.pt"
    with pytest.raises(CheckpointError, match=message):
        save_head(path, tensor, meta)
    assert not path.exists()
    torch.save({"format": "gkd.head", "format_version": 1, "class_weights": tensor, "meta": meta}, path)
    with pytest.raises(CheckpointError, match=message):
        load_head(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_weights": [1.0]}, r"class_weights must be a float tensor \(C, D\), got list"),
        ({"meta": [1]}, "meta must be a dict, got list"),
        ({"format_version": 9}, "has gkd.head version 9, this gkd reads version 1"),
        ({"more": 1}, "fields missing or unknown: more"),
    ],
)
def test_damaged_files(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = {"format": "gkd.head", "format_version": 1, "class_weights": weights(), "meta": {}}
    torch.save({**content, **change}, tmp_path / "head.pt")
    with pytest.raises(CheckpointError, match=message):
        load_head(tmp_path / "head.pt")


def test_the_safetensors_file_beside_it_holds_the_same(tmp_path: Path) -> None:
    save_head(tmp_path / "head.pt", weights(), META)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.pt", "head.safetensors"]
    with safe_open(tmp_path / "head.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["class_weights"]
        assert torch.equal(file.get_tensor("class_weights"), weights())
        assert file.metadata()["format"] == "gkd.head"
        assert json.loads(file.metadata()["meta"]) == META
    loaded, meta = load_head(tmp_path / "head.safetensors")
    assert torch.equal(loaded, weights())
    assert meta == META


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"class_weights": torch.ones(2, 2)}, {}, r"is not a gkd\.head file"),
        ({"class_weights": torch.ones(2, 2)}, {"format": "gkd.student"}, r"not a gkd\.head file but a gkd\.student"),
        ({"class_weights": torch.ones(2, 2)}, {"format": "gkd.head", "format_version": "1"}, "unknown: meta"),
        (
            {"class_weights": torch.ones(2, 2)},
            {"format": "gkd.head", "format_version": "1", "meta": "{"},
            "its metadata `meta` is not valid JSON",
        ),
        (
            {"class_weights": torch.ones(2, 2)},
            {"format": "gkd.head", "format_version": "1", "meta": '{"num_classes": 3}'},
            "num_classes is 3 but the weights have 2 rows",
        ),
        ({"format": torch.ones(1)}, {"format": "gkd.head", "format_version": "1"}, r"is not a gkd\.head file"),
    ],
)
def test_damaged_safetensors(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "head.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        load_head(tmp_path / "head.safetensors")


def test_names_that_are_too_long_for_the_safetensors_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_file, "MAX_METADATA_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"head\.safetensors: the values .* more than the 100 that"):
        save_head(tmp_path / "head.pt", weights(), META)
    assert list(tmp_path.iterdir()) == []


def test_a_head_is_not_a_student(tmp_path: Path) -> None:
    save_head(tmp_path / "head.pt", weights(), META)
    with pytest.raises(CheckpointError, match=r"is not a gkd\.student file but a gkd\.head file"):
        load_student(tmp_path / "head.pt")


def test_no_code_runs(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"format": "gkd.head", "class_weights": weights(), "meta": {"x": Runs()}}, tmp_path / "head.pt")
    with pytest.raises(CheckpointError, match=r"head\.pt"):
        load_head(tmp_path / "head.pt")
    assert not (tmp_path / "ran").exists()
