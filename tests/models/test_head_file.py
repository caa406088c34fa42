"""head.pt: round trip, agreement of its fields, hostile files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from gkd.core.errors import CheckpointError
from gkd.models import load_head, load_student, save_head

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
