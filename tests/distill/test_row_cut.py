"""The k-th best entry of a long row against a full sort, for every way in which its search can end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gkd.distill import row_cut
from gkd.distill.row_cut import Guess, guess_kth_best, kth_best_other

NUM_ENTRIES = 20_011  # no multiple of a block


def rows(kind: str, num_rows: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(5)
    scores = torch.randn(num_rows, NUM_ENTRIES, dtype=dtype) * 4
    if kind == "skewed":
        scores = scores.exp()
    if kind == "ties":
        scores = (scores * 2).round() / 2
    if kind == "infinite":
        scores[:, ::3] = -math.inf
    if kind == "sorted":
        scores = scores.sort(dim=1).values
    return scores


def found(scores: Tensor, targets: Tensor, k: int, guesses: list[Guess] | None = None) -> list[float]:
    guesses = guesses or guess_kth_best(scores, torch.full((len(scores),), float(k), dtype=torch.float64))
    scratch = (torch.empty_like(scores[0]), torch.empty_like(scores[0]))
    taken = [row[target].item() for row, target in zip(scores, targets, strict=True)]
    return [kth_best_other(row, out, k, guess, scratch)
            for row, out, guess in zip(scores, taken, guesses, strict=True)]  # fmt: skip


def expected(scores: Tensor, targets: Tensor, k: int) -> list[float]:
    others = scores.scatter(1, targets[:, None], -math.inf)
    return others.sort(dim=1, descending=True).values[:, k - 1].tolist()


@pytest.mark.parametrize("kind", ["normal", "skewed", "ties", "sorted", "infinite"])
@pytest.mark.parametrize("k", [1, 2, 300, 2000, 10_000, 13_000, NUM_ENTRIES - 300, NUM_ENTRIES - 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_entry_of_a_full_sort(kind: str, k: int, dtype: torch.dtype) -> None:
    scores = rows(kind, dtype=dtype)
    for targets in (torch.arange(6) * 3001, scores.argmax(dim=1), scores.argmin(dim=1)):
        assert found(scores, targets, k) == expected(scores, targets, k)


@pytest.mark.parametrize("distance", [-40, -3, -1, 0, 1, 2, 40])
def test_a_target_near_the_place_is_taken_out(distance: int) -> None:
    scores, k = rows("normal"), 3000
    targets = scores.argsort(dim=1, descending=True)[:, k - 1 + distance]
    assert found(scores, targets, k) == expected(scores, targets, k)


@pytest.mark.parametrize("slope", [0.0, 1e-9, 1e-4, 1e-3, 1.0, math.nan, math.inf])
@pytest.mark.parametrize("value", [-1e30, -2.0, 0.0, 4.0, 4.1, 100.0, math.nan, math.inf])
def test_a_bad_guess_changes_no_result(value: float, slope: float) -> None:
    scores, targets = rows("normal"), torch.arange(6)
    assert found(scores, targets, 3000, [Guess(value, slope)] * 6) == expected(scores, targets, 3000)


def test_the_whole_row_is_rarely_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above would say nothing of the search around a guess if it always gave up."""
    searched = []
    search_whole = row_cut._search_whole
    monkeypatch.setattr(row_cut, "_search_whole", lambda *given: (searched.append(given), search_whole(*given))[1])
    found(rows("normal", 60), torch.arange(60), 3000)
    assert len(searched) < 6


def test_inputs_stay() -> None:
    scores = rows("normal")
    before = scores.clone()
    found(scores, torch.arange(6), 3000)
    assert torch.equal(scores, before)
