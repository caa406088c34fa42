"""Primitives along the class axis against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gkd.core import classes
from gkd.core.classes import check_labels, compute_dtype, log_sum_exp, row_chunks, top_k_mask
from gkd.core.errors import ConfigError, DataError


def best_classes(row: Tensor, k: int) -> set[int]:
    return set(sorted(range(len(row)), key=lambda j: (-float(row[j]), j))[:k])


def marked(mask: Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in mask]


@pytest.mark.parametrize("entries", [1, 7, 20, 1000])
def test_row_chunks_cover_every_row_once(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "_CPU_CHUNK_ENTRIES", entries)
    scores = torch.arange(11 * 5).reshape(11, 5)
    assert torch.equal(torch.cat([scores[rows] for rows in row_chunks(scores)]), scores)
    assert all(scores[rows].numel() <= max(entries, 5) for rows in row_chunks(scores))


def test_compute_dtype_is_fp32_unless_a_float64_is_given() -> None:
    half, double = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)
    assert compute_dtype(half, half.bfloat16()) == torch.float32
    assert compute_dtype(half, double) == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_sum_exp_equals_a_loop(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scores, mask = torch.randn(6, 40, dtype=dtype) * 10, torch.rand(6, 40) > 0.5
    for row, result, kept in zip(scores.tolist(), log_sum_exp(scores, mask), mask, strict=True):
        best = max(row)
        expected = best + math.log(math.fsum(math.exp(v - best) for v, keep in zip(row, kept, strict=True) if keep))
        assert float(result) == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 1e-6)
    assert log_sum_exp(scores).dtype == torch.float64


def test_log_sum_exp_of_extremes_and_of_an_empty_mask() -> None:
    scores = torch.tensor([[1e4, -1e4, 0.0], [-3e38, -3e38, -3e38]])
    assert log_sum_exp(scores)[0] == 1e4
    assert log_sum_exp(scores)[1].isfinite()
    assert log_sum_exp(scores, torch.tensor([[False, True, False], [False] * 3])).tolist() == [-1e4, -math.inf]


@pytest.mark.parametrize("levels", [2, 5, 10_000])
@pytest.mark.parametrize("k", [1, 2, 7, 29, 30])
def test_top_k_mask_marks_k_with_ties_to_the_lower_index(k: int, levels: int) -> None:
    torch.manual_seed(k)
    scores = torch.randint(0, levels, (9, 30)).float()
    expected = [best_classes(row, k) for row in scores]
    for given in (k, torch.tensor([[k]]), torch.full((9, 1), k)):
        assert marked(top_k_mask(scores, given)) == expected


def test_top_k_mask_takes_each_row_own_k() -> None:
    torch.manual_seed(0)
    scores, k = torch.randint(0, 6, (8, 12)).float(), torch.tensor([1, 2, 3, 5, 8, 11, 12, 4])
    assert marked(top_k_mask(scores, k[:, None])) == [best_classes(s, int(n)) for s, n in zip(scores, k, strict=True)]


def test_top_k_mask_all_equal_takes_the_first() -> None:
    assert top_k_mask(torch.zeros(2, 5), 3).tolist() == [[True] * 3 + [False] * 2] * 2


def test_top_k_mask_leaves_its_input_alone() -> None:
    scores = torch.randn(3, 8)
    before = scores.clone()
    top_k_mask(scores, 4)
    assert torch.equal(scores, before)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_outside_the_classes_is_refused(label: int) -> None:
    with pytest.raises(DataError, match=rf"must lie in \[0, 4\).*range from {min(label, 0)} to {max(label, 0)}.*num_c"):
        check_labels(torch.tensor([0, label]), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), torch.zeros(2, 4), r"int64 of shape \(2,\).*got int64 \(3,\)"),
        (torch.zeros(2), torch.zeros(2, 4), r"got float32 \(2,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 4), r"got int64 \(2, 1\)"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2), r"non-empty floating-point.*got float32 \(2,\)"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4).long(), r"got int64 \(2, 4\)"),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), r"got float32 \(0, 4\)"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 0), r"got float32 \(2, 0\)"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(labels: Tensor, scores: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_labels(labels, scores)


def test_labels_that_fit_pass() -> None:
    check_labels(torch.tensor([0, 3]), torch.zeros(2, 4))
