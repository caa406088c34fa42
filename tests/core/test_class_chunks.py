"""Sums and gradients over chunks of class scores, against float64 loops over single entries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gkd.core import class_chunks
from gkd.core.class_chunks import EXCLUDED, Gradient, GroupSums, Primary, RunningSum

NUM_ROWS, NUM_CLASSES = 4, 30
CUTS = [NUM_CLASSES], [7, 23], [1, 1, 28], [29, 1]


def scores(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rounded, so that there are ties; one entry a row is excluded."""
    torch.manual_seed(seed)
    given = (torch.randn(NUM_ROWS, NUM_CLASSES, dtype=torch.float64) * 4).round().to(dtype)
    return given.scatter_(1, torch.tensor([[0], [29], [7], [13]]), EXCLUDED)


def cutoff(student: Tensor, kind: str) -> Primary:
    """The 9 best, the two ties at the cut-off shared by class; or nothing, or everything."""
    value = student.sort(dim=1, descending=True).values[:, 8:9]
    last_class = torch.tensor([[109], [115], [104], [129]])
    if kind == "none":
        value, last_class = torch.full_like(value, math.inf), torch.full_like(last_class, -1)
    if kind == "all":
        value = torch.full_like(value, -1e9)
    return Primary(value, last_class, ranked_is_student=True)


def is_primary(primary: Primary, student: Tensor, row: int, column: int) -> bool:
    score, value = float(student[row, column]), float(primary.value[row])
    return score > value or (score == value and 100 + column <= int(primary.last_class[row]))


def chunks(sizes: list[int]) -> list[tuple[slice, Tensor]]:
    """Columns and class indices, which begin at 100."""
    found, start = [], 0
    for size in sizes:
        found.append((slice(start, start + size), torch.arange(100 + start, 100 + start + size)))
        start += size
    return found


def log_sum(values: list[float]) -> float:
    best = max(values, default=-math.inf)
    return best + math.log(math.fsum(math.exp(value - best) for value in values)) if values else -math.inf


@pytest.mark.parametrize("sizes", CUTS, ids=str)
@pytest.mark.parametrize("inverse_temperature", [0.25, 1.0, 20.0])
def test_a_running_sum_is_the_sum_of_all(sizes: list[int], inverse_temperature: float) -> None:
    given = scores(1)
    running = RunningSum.empty(NUM_ROWS, given)
    for columns, _ in chunks(sizes):
        class_chunks.add_to_sum(given[:, columns], running, inverse_temperature)
    for row, found in enumerate(running.log().tolist()):
        entries = [value * inverse_temperature for value in given[row].tolist() if value > EXCLUDED / 2]
        assert found == pytest.approx(log_sum(entries), rel=1e-6)


def test_nothing_but_excluded_entries_are_an_empty_sum() -> None:
    given = torch.full((2, 3), EXCLUDED)
    running, sums = RunningSum.empty(2, given), GroupSums.empty(2, given)
    class_chunks.add_to_sum(given, running, 0.25)
    primary = Primary(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64), ranked_is_student=True)
    class_chunks.add_to_groups(given, given, primary, torch.arange(3), 0.25, sums)
    assert running.log().tolist() == [-math.inf] * 2
    assert sums.log().tolist() == [[-math.inf] * 2] * 4
    assert sums.gap.tolist() == [[0.0] * 2] * 2


@pytest.mark.parametrize("sizes", CUTS, ids=str)
@pytest.mark.parametrize("kind", ["some", "none", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_group_sums_are_those_of_loops(sizes: list[int], kind: str, dtype: torch.dtype) -> None:
    student, teacher, inverse_temperature = scores(1, dtype), scores(2, dtype), 0.25
    primary = cutoff(student, kind)
    sums = GroupSums.empty(NUM_ROWS, student)
    for columns, classes in chunks(sizes):
        class_chunks.add_to_groups(
            student[:, columns], teacher[:, columns], primary, classes, inverse_temperature, sums
        )
    lse = sums.log()
    for row in range(NUM_ROWS):
        entries = [column for column in range(NUM_CLASSES) if float(student[row, column]) > EXCLUDED / 2]
        groups = [[c for c in entries if is_primary(primary, student, row, c) is side] for side in (True, False)]
        assert int(sums.count[row]) == len(groups[0])
        for index, (given, group) in enumerate((s, g) for s in (student, teacher) for g in groups):
            expected = log_sum([float(given[row, column]) * inverse_temperature for column in group])
            assert float(lse[index, row]) == pytest.approx(expected, rel=1e-6), index
        for side, group in enumerate(groups):
            best = float(sums.best[2 + side, row])
            gap = math.fsum(
                math.exp(float(teacher[row, c]) * inverse_temperature - best)
                * (float(teacher[row, c]) - float(student[row, c]))
                * inverse_temperature
                for c in group
            )
            assert float(sums.gap[side, row]) == pytest.approx(gap, rel=1e-5, abs=1e-9)


def test_the_case_has_ties_on_both_sides_of_the_cut() -> None:
    student = scores(1)
    primary = cutoff(student, "some")
    ties = [[c for c in range(NUM_CLASSES) if student[row, c] == primary.value[row]] for row in range(NUM_ROWS)]
    inside = [[is_primary(primary, student, row, c) for c in ties[row]] for row in range(NUM_ROWS)]
    assert any(any(row) and not all(row) for row in inside)


def test_all_ties_may_be_taken_at_once() -> None:
    student, teacher = scores(1), scores(2)
    given = cutoff(student, "some")
    high = torch.full_like(given.last_class, 10**6)
    slow = Primary(given.value, high, ranked_is_student=True)
    fast = Primary(given.value, high, ranked_is_student=True, has_all_ties=True)
    classes = torch.arange(NUM_CLASSES)
    assert torch.equal(slow.mask(classes, student, teacher), fast.mask(classes, student, teacher))
    by_teacher = Primary(given.value, high, ranked_is_student=False)
    assert torch.equal(by_teacher.mask(classes, teacher, student), slow.mask(classes, student, teacher))


@pytest.mark.parametrize("kind", ["some", "none", "all", "no teacher"])
def test_gradients_are_those_of_loops(kind: str) -> None:
    student, teacher, inverse_temperature = scores(1), scores(2), 0.5
    torch.manual_seed(3)
    class_weight, coefficients = torch.rand(NUM_ROWS), torch.randn(4, NUM_ROWS)
    class_lse, group_lse = torch.rand(NUM_ROWS) + 9, torch.rand(4, NUM_ROWS) + 5
    primary = None if kind == "no teacher" else cutoff(student, kind)
    if kind in ("none", "all"):  # the empty groups' log-sum-exps
        group_lse[{"none": 0, "all": 1}[kind] :: 2] = -math.inf
    gradient = Gradient(class_weight, class_lse, *((coefficients, group_lse) if primary else ()))
    given = None if primary is None else teacher
    out = torch.empty_like(student)
    class_chunks.write_gradient(student, given, primary, torch.arange(100, 130), inverse_temperature, gradient, out)
    for row in range(NUM_ROWS):
        for column in range(NUM_CLASSES):
            z_student, z_teacher = float(student[row, column]), float(teacher[row, column])
            expected = float(class_weight[row]) * math.exp(z_student - float(class_lse[row]))
            if primary is not None and z_student > EXCLUDED / 2:
                group = 0 if is_primary(primary, student, row, column) else 1
                for index, sign, value in ((group, 1, z_student), (group + 2, -1, z_teacher)):
                    share = math.exp(value * inverse_temperature - float(group_lse[index, row]))
                    expected += sign * float(coefficients[index, row]) * share
            assert float(out[row, column]) == pytest.approx(expected, rel=2e-5, abs=1e-7)
    in_place = student.clone()
    class_chunks.write_gradient(
        in_place, given, primary, torch.arange(100, 130), inverse_temperature, gradient, in_place
    )
    assert torch.equal(in_place, out)


def test_masses_of_classes_are_sums_of_probabilities() -> None:
    given = scores(4)
    log_normaliser = torch.logsumexp(given.double() * 0.5, dim=1)
    out = torch.empty(NUM_CLASSES, dtype=torch.float64)
    class_chunks.mass_of_classes(given, log_normaliser, 0.5, out)
    torch.testing.assert_close(out, (given.double() * 0.5).softmax(dim=1).sum(dim=0), rtol=1e-5, atol=1e-8)
