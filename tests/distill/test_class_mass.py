"""Class masses and the number of classes that hold a share of them, against a softmax and a full sort."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gkd.core import classes
from gkd.core.class_prefix import num_short
from gkd.distill import CumulativeMass
from gkd.distill.class_mass import batch_masses, row_powers


def scores(num_samples: int = 19, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(2)
    return (torch.randn(num_samples, 9001, dtype=torch.float64) * 3.8 + 40).to(dtype)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_masses_are_the_sum_of_softmaxes(temperature: float, dtype: torch.dtype) -> None:
    given = scores(dtype=dtype)
    exact = (given.double() / temperature).softmax(dim=1)
    masses = batch_masses(given, temperature)
    assert masses.dtype == torch.float64
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(masses, exact.sum(dim=0), rtol=tolerance, atol=1e-12)
    assert float(masses.sum()) == pytest.approx(19, rel=tolerance)
    for row, powers in zip(exact, row_powers(given, temperature), strict=True):
        torch.testing.assert_close(powers.double() / powers.double().sum(), row, rtol=tolerance, atol=1e-12)


def short_by_sorting(masses: Tensor, due: float) -> int:
    return int((masses.double().sort(descending=True).values.cumsum(dim=0) < due).sum())


@pytest.mark.parametrize("share", [1e-9, 0.3, 0.5, 0.93, 0.999, 1 - 1e-9, 1.1])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_num_short_equals_a_full_sort(share: float, temperature: float) -> None:
    for masses in (batch_masses(scores(), temperature), *(row.clone() for row in row_powers(scores(3), temperature))):
        due = share * float(masses.sum(dtype=torch.float64))
        assert num_short(masses, due) == short_by_sorting(masses, due)


@pytest.mark.parametrize("due", [0.0, 0.5, 1.0, 1.5, 2.0, 3.9, 4.0, 4.1])
@pytest.mark.parametrize("masses", [[1.0] * 4, [2.0, 1.0, 1.0, 0.0], [0.0, 4.0, 0.0, 0.0]])
def test_num_short_at_equal_and_absent_masses(masses: list[float], due: float) -> None:
    assert num_short(torch.tensor(masses), due) == short_by_sorting(torch.tensor(masses), due)


@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("k_step", [1, 100])
def test_both_ways_choose_the_same_k(scope: str, k_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given, grouping = scores(), CumulativeMass(scope=scope, k_step=k_step)  # type: ignore[arg-type]
    by_rows = grouping.primary_sizes(given)
    monkeypatch.setattr(classes, "_FEWEST_LONG_ROW_ENTRIES", 10_000)
    assert torch.equal(by_rows, grouping.primary_sizes(given))
