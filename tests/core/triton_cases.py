"""The Triton functions against float64 loops over single entries; run by test_class_chunks_triton.py.

On a CUDA device, or with TRITON_INTERPRET=1, which triton must find set when it is imported, on the CPU.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gkd.core import class_chunks_triton
from gkd.core.class_chunks import EXCLUDED, Gradient, GroupSums, Primary, RunningSum

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
FIRST_CLASS = 100
EMPTY = -math.inf
EXCLUDED_AS_FP32 = float(torch.tensor(EXCLUDED))
# One column and row; less than a block; blocks exactly; blocks and a rest; many blocks.
SHAPES = [(1, 1), (4, 30), (2, 2048), (3, 2065), (1, 5001)]
# Where 2065 columns are cut into chunks.
CUTS = [[], [7], [1, 2, 1026], [1024, 2064]]


def scores(shape: tuple[int, int], seed: int, step: float = 1.0) -> Tensor:
    """Multiples of `step`, so that there are ties, sd 5; of more than one column, one a row is excluded."""
    generator = torch.Generator().manual_seed(seed)
    given = (torch.randn(shape, generator=generator) * 5 / step).round() * step
    if shape[1] > 1:
        given[torch.arange(shape[0]), torch.arange(shape[0]) * 7 % shape[1]] = EXCLUDED
    return given.to(DEVICE)


def primary_of(ranked: Tensor, kind: str, ranked_is_student: bool = True) -> Primary:
    """A tenth of the columns are above the cut-off or tie with it; of those that tie, the lower classes are in."""
    rows, columns = ranked.shape
    value = ranked.sort(dim=1, descending=True).values[:, columns // 10, None].clamp_min(-1e3)
    last_class = torch.arange(rows)[:, None] * (columns // 3) + FIRST_CLASS + columns // 4
    if kind == "none":
        value, last_class = torch.full_like(value, math.inf), torch.full_like(last_class, -1)
    if kind == "all":
        value = torch.full_like(value, -math.inf)
    return Primary(value, last_class.to(DEVICE), ranked_is_student, has_all_ties=kind == "all ties")


def classes_of(start: int, stop: int) -> Tensor:
    return torch.arange(FIRST_CLASS + start, FIRST_CLASS + stop, device=DEVICE)


def groups(row: int, student: Tensor, teacher: Tensor, primary: Primary) -> tuple[list[int], list[int]]:
    """The columns of a row's Primary and Secondary entries, excluded ones left out."""
    value, last_class = float(primary.value[row]), int(primary.last_class[row])
    found: tuple[list[int], list[int]] = ([], [])
    ranked = (student if primary.ranked_is_student else teacher)[row].tolist()
    for column, score in enumerate(ranked):
        is_tie_inside = score == value and (primary.has_all_ties or FIRST_CLASS + column <= last_class)
        if score > EXCLUDED / 2:
            found[0 if score > value or is_tie_inside else 1].append(column)
    return found


def log_sum(values: list[float]) -> float:
    if not values:
        return EMPTY
    best = max(values)
    return best + math.log(math.fsum(math.exp(value - best) for value in values))


def chunks(columns: int, cuts: list[int]) -> list[tuple[int, int]]:
    return list(zip([0, *cuts], [*cuts, columns], strict=True))


def summed(given: Tensor, inverse_temperature: float, cuts: list[int]) -> RunningSum:
    running = RunningSum.empty(len(given), given)
    for start, stop in chunks(given.shape[1], cuts):
        class_chunks_triton.add_to_sum(given[:, start:stop], running, inverse_temperature)
    return running


def summed_groups(student: Tensor, teacher: Tensor, primary: Primary, temperature: float, cuts: list[int]) -> GroupSums:
    sums = GroupSums.empty(len(student), student)
    for start, stop in chunks(student.shape[1], cuts):
        class_chunks_triton.add_to_groups(
            student[:, start:stop], teacher[:, start:stop], primary, classes_of(start, stop), 1 / temperature, sums
        )
    return sums


def assert_is_log_sum(found: Tensor, given: Tensor, inverse_temperature: float) -> None:
    for row, value in enumerate(found.tolist()):
        entries = [score * inverse_temperature for score in given[row].tolist() if score > EXCLUDED / 2]
        assert value == pytest.approx(log_sum(entries), rel=1e-6, abs=1e-6)


def assert_are_group_sums(
    sums: GroupSums, student: Tensor, teacher: Tensor, primary: Primary, temperature: float
) -> None:
    found = sums.log().tolist()
    for row in range(len(student)):
        u_student, u_teacher = ([z / temperature for z in side[row].tolist()] for side in (student, teacher))
        inside = groups(row, student, teacher, primary)
        assert int(sums.count[row]) == len(inside[0])
        for group, columns in enumerate(inside):
            for line, values in ((group, u_student), (2 + group, u_teacher)):
                expected = log_sum([values[column] for column in columns])
                assert found[line][row] == pytest.approx(expected, rel=1e-6, abs=2e-6), (row, line)
            if columns:  # the mean gap, which does not depend on what was taken out of the exponentials
                lse = log_sum([u_teacher[column] for column in columns])
                gap = math.fsum(math.exp(u_teacher[c] - lse) * (u_teacher[c] - u_student[c]) for c in columns)
                mean = float(sums.gap[group, row] / sums.total[2 + group, row])
                assert mean == pytest.approx(gap, rel=1e-5, abs=1e-5)
            else:
                assert float(sums.gap[group, row]) == 0


def expected_gradient(
    student: Tensor, teacher: Tensor | None, primary: Primary | None, temperature: float, gradient: Gradient
) -> Tensor:
    """By the formula, in float64 on the CPU; zero where excluded."""
    out = torch.zeros(student.shape, dtype=torch.float64)
    for row in range(len(student)):
        weight, lse = float(gradient.class_weight[row]), float(gradient.class_lse[row])
        values = student[row].tolist()
        for column, value in enumerate(values):
            if value > EXCLUDED / 2:
                out[row, column] = weight * math.exp(value - lse)
        if teacher is None or primary is None or gradient.coefficients is None or gradient.group_lse is None:
            continue
        both = values, teacher[row].tolist()
        for group, columns in enumerate(groups(row, student, teacher, primary)):
            for line, sign, side in ((group, 1, both[0]), (group + 2, -1, both[1])):
                factor, lse = sign * float(gradient.coefficients[line, row]), float(gradient.group_lse[line, row])
                for column in columns:
                    out[row, column] += factor * math.exp(side[column] / temperature - lse)
    return out


def gradient_of(student: Tensor, sums: GroupSums | None) -> Gradient:
    rows, generator = len(student), torch.Generator().manual_seed(9)
    class_weight = torch.rand(rows, generator=generator).to(DEVICE)
    lse = student.double().logsumexp(dim=1).float()
    if sums is None:
        return Gradient(class_weight, lse)
    return Gradient(class_weight, lse, torch.randn((4, rows), generator=generator).to(DEVICE), sums.log().float())


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu().double(), expected, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inverse_temperature", [0.25, 1 / 3, 20.0])
def test_a_sum_is_that_of_a_loop(shape: tuple[int, int], inverse_temperature: float) -> None:
    given = scores(shape, 1, step=1e-3)
    before = given.clone()
    assert_is_log_sum(summed(given, inverse_temperature, []).log(), given, inverse_temperature)
    assert torch.equal(given, before)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_chunks_in_any_order_sum_to_the_same(cuts: list[int]) -> None:
    given = scores((3, 2065), 1).sort(dim=1).values  # ascending: the greatest so far grows with every chunk
    for direction in (given, given.flip(1)):
        assert_is_log_sum(summed(direction, 0.25, cuts).log(), direction, 0.25)


def test_the_best_of_a_sum_is_the_greatest_score() -> None:
    given = scores((3, 2065), 1, step=1e-3)
    assert torch.equal(summed(given, 1.0, [7]).best, given.amax(dim=1))
    assert summed(torch.full((2, 5), EXCLUDED, device=DEVICE), 1.0, []).best.tolist() == [EXCLUDED_AS_FP32] * 2


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["some", "none", "all", "all ties", "by teacher"])
def test_group_sums_are_those_of_loops(shape: tuple[int, int], kind: str) -> None:
    student, teacher = scores(shape, 1), scores(shape, 2)
    primary = primary_of(teacher if kind == "by teacher" else student, kind, kind != "by teacher")
    sums = summed_groups(student, teacher, primary, 4.0, [])
    assert_are_group_sums(sums, student, teacher, primary, 4.0)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_group_sums_over_chunks_are_those_of_loops(cuts: list[int], temperature: float) -> None:
    order = scores((3, 2065), 2).argsort(dim=1)  # the teacher's greatest so far grows, and the gaps with it
    student, teacher = (scores((3, 2065), seed).gather(1, order) for seed in (1, 2))
    student[teacher == EXCLUDED], teacher[student == EXCLUDED] = EXCLUDED, EXCLUDED
    primary = primary_of(student, "some")
    assert_are_group_sums(
        summed_groups(student, teacher, primary, temperature, cuts), student, teacher, primary, temperature
    )


def test_the_case_has_ties_on_both_sides_of_the_cut_off() -> None:
    student = scores((3, 2065), 1)
    primary = primary_of(student, "some")
    inside = [groups(row, student, student, primary)[0] for row in range(3)]
    ties = [(student[row] == primary.value[row]).nonzero().flatten().tolist() for row in range(3)]
    assert all(0 < len(set(ties[row]) & set(inside[row])) < len(ties[row]) for row in (0, 1))


def test_classes_may_have_gaps() -> None:
    student, teacher = scores((3, 600), 1), scores((3, 600), 2)
    primary = primary_of(student, "some")
    strided = student[:, ::3].contiguous(), teacher[:, ::3].contiguous()
    sums = GroupSums.empty(3, student)
    class_chunks_triton.add_to_groups(*strided, primary, classes_of(0, 600)[::3], 0.25, sums)
    inside = [groups(row, student, teacher, primary)[0] for row in range(3)]
    assert sums.count.tolist() == [sum(column % 3 == 0 for column in columns) for columns in inside]


@pytest.mark.parametrize("temperature", [0.05, 100.0])
def test_excluded_entries_alone_are_nothing_before_and_after_others(temperature: float) -> None:
    nothing, given = torch.full((2, 40), EXCLUDED, device=DEVICE), scores((2, 40), 1)
    for order in ([nothing], [nothing, given], [given, nothing], [nothing, given, nothing]):
        whole = torch.cat(order, dim=1)
        running = summed(whole, 1 / temperature, [40 * i for i in range(1, len(order))])
        assert_is_log_sum(running.log(), whole, 1 / temperature)
        for kind in ("some", "none", "all"):
            primary = primary_of(given, kind)
            sums = summed_groups(whole, whole - 0.0, primary, temperature, [40 * i for i in range(1, len(order))])
            assert_are_group_sums(sums, whole, whole, primary, temperature)


def test_a_group_far_below_the_other_keeps_its_sum() -> None:
    student = scores((2, 50), 1)
    student[:, 40:45] += 400  # exp(-400) is 0 in fp32
    primary = primary_of(student, "some")
    for side in (True, False):
        primary = replace(primary, ranked_is_student=side)
        sums = summed_groups(student, student.clone(), primary, 1.0, [])
        assert_are_group_sums(sums, student, student, primary, 1.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["some", "none", "all", "all ties", "by teacher", "no teacher"])
def test_gradients_are_those_of_loops(shape: tuple[int, int], kind: str) -> None:
    student, teacher, temperature = scores(shape, 1), scores(shape, 2), 4.0
    primary = primary_of(teacher if kind == "by teacher" else student, kind, kind != "by teacher")
    gradient = gradient_of(student, summed_groups(student, teacher, primary, temperature, []))
    given: tuple[Tensor | None, Primary | None] = (teacher, primary)
    if kind == "no teacher":
        given, gradient = (None, None), gradient_of(student, None)
    expected = expected_gradient(student, *given, temperature, gradient)
    out, classes = torch.full_like(student, torch.nan), classes_of(0, shape[1])
    class_chunks_triton.write_gradient(student, *given, classes, 1 / temperature, gradient, out)
    assert_close(out, expected)
    assert torch.all(out[student == EXCLUDED] == 0)
    class_chunks_triton.write_gradient(student, *given, classes, 1 / temperature, gradient, student)
    assert torch.equal(student, out)


@pytest.mark.parametrize("temperature", [0.05, 3.0, 100.0])
def test_an_excluded_entry_alone_in_its_group_has_no_gradient(temperature: float) -> None:
    student = torch.full((2, 3), EXCLUDED, device=DEVICE)
    student[:, 1] = 2.0
    for kind in ("all", "none"):
        primary = primary_of(student, kind)
        gradient = gradient_of(student, summed_groups(student, student, primary, temperature, []))
        out = torch.full_like(student, torch.nan)
        class_chunks_triton.write_gradient(
            student, student.clone(), primary, classes_of(0, 3), 1 / temperature, gradient, out
        )
        assert_close(out, expected_gradient(student, student, primary, temperature, gradient))


@pytest.mark.parametrize(
    ("shape", "parts"), [((1, 1), 1), ((3, 2065), 1), ((64, 30), 1), ((65, 30), 2), ((203, 515), 4)], ids=str
)
def test_masses_are_those_of_loops(shape: tuple[int, int], parts: int) -> None:
    given, inverse_temperature = scores(shape, 4, step=1e-3), 0.5
    assert parts == -(-shape[0] // class_chunks_triton._MASS_MIN_ROWS)
    normaliser = (given.double() * inverse_temperature).logsumexp(dim=1)
    whole = torch.full((shape[1] + 2,), torch.nan, dtype=torch.float64, device=DEVICE)
    class_chunks_triton.mass_of_classes(given, normaliser, inverse_temperature, whole[1:-1])
    pairs = [(row, float(normaliser[index])) for index, row in enumerate(given.tolist())]
    expected = [math.fsum(math.exp(row[c] * inverse_temperature - lse) for row, lse in pairs) for c in range(shape[1])]
    assert whole[1:-1].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert bool(whole[[0, -1]].isnan().all())


def test_rows_may_lie_apart() -> None:
    wide_student, wide_teacher = scores((3, 2300), 1), scores((3, 2300), 2)
    student, teacher = wide_student[:, 5:2070], wide_teacher[:, 100:2165]
    student[teacher == EXCLUDED], teacher[student == EXCLUDED] = EXCLUDED, EXCLUDED
    primary = primary_of(student, "some")
    assert_is_log_sum(summed(student, 0.25, []).log(), student, 0.25)
    sums = summed_groups(student, teacher, primary, 4.0, [])
    assert_are_group_sums(sums, student, teacher, primary, 4.0)
    masses = torch.empty(2065, dtype=torch.float64, device=DEVICE)
    class_chunks_triton.mass_of_classes(student, torch.full((3,), 5.0, device=DEVICE), 0.25, masses)
    torch.testing.assert_close(masses, (student.double() / 4 - 5).exp().sum(dim=0), rtol=1e-5, atol=1e-12)
    gradient, wide_out = gradient_of(student, sums), torch.full((3, 2200), 7.0, device=DEVICE)
    out = wide_out[:, 50:2115]
    class_chunks_triton.write_gradient(student, teacher, primary, classes_of(0, 2065), 0.25, gradient, out)
    assert_close(out, expected_gradient(student, teacher, primary, 4.0, gradient))
    assert bool((wide_out[:, :50] == 7).all())
    assert bool((wide_out[:, 2115:] == 7).all())


def test_no_columns_and_no_rows_change_nothing() -> None:
    for given in (scores((2, 30), 1)[:, :0], scores((2, 30), 1)[:0]):
        running, sums = RunningSum.empty(len(given), given), GroupSums.empty(len(given), given)
        primary = Primary(torch.zeros((len(given), 1), device=DEVICE), torch.zeros((len(given), 1)).long(), True)
        classes, masses = classes_of(0, given.shape[1]), torch.ones(given.shape[1], dtype=torch.float64)
        class_chunks_triton.add_to_sum(given, running, 1.0)
        class_chunks_triton.add_to_groups(given, given, primary, classes, 1.0, sums)
        class_chunks_triton.write_gradient(given, None, None, classes, 1.0, gradient_of(given, None), given)
        class_chunks_triton.mass_of_classes(given, torch.zeros(len(given)), 1.0, masses)
        assert running.log().tolist() == [EMPTY] * len(given)
        assert sums.log().tolist() == [[EMPTY] * len(given)] * 4
        assert masses.tolist() == [0.0] * given.shape[1]


def test_a_nan_shows_in_every_result_of_its_row_and_in_no_other() -> None:
    student, teacher = scores((3, 2065), 1), scores((3, 2065), 2)
    primary = primary_of(student, "some")
    clean = summed_groups(student, teacher, primary, 4.0, [])
    gradient, out = gradient_of(student, clean), torch.empty_like(student)
    student[1, 2000] = teacher[1, 2000] = torch.nan
    assert summed(student, 0.25, []).log().isnan().tolist() == [False, True, False]
    sums = summed_groups(student, teacher, primary, 4.0, [])
    assert sums.log().isnan().any(dim=0).tolist() == [False, True, False]
    assert sums.gap.isnan().any(dim=0).tolist() == [False, True, False]
    class_chunks_triton.write_gradient(student, teacher, primary, classes_of(0, 2065), 0.25, gradient, out)
    assert out.isnan().nonzero().tolist() == [[1, 2000]]
    for table in (gradient.class_weight, gradient.class_lse, gradient.coefficients[:2], gradient.group_lse[:2]):
        kept = table.clone()
        table[..., 0] = torch.nan
        class_chunks_triton.write_gradient(student, teacher, primary, classes_of(0, 2065), 0.25, gradient, out)
        assert bool(out[0, 1:].isnan().all())
        table.copy_(kept)
    masses = torch.empty(2065, dtype=torch.float64, device=DEVICE)
    class_chunks_triton.mass_of_classes(student, torch.zeros(3, device=DEVICE), 0.25, masses)
    assert masses.isnan().nonzero().tolist() == [[2000]]


def test_results_repeat_bit_for_bit() -> None:
    student, teacher = scores((3, 2065), 1, step=1e-3), scores((3, 2065), 2, step=1e-3)
    first, second = (summed_groups(student, teacher, primary_of(student, "some"), 4.0, [7]) for _ in range(2))
    assert torch.equal(first.total, second.total)
    assert torch.equal(first.gap, second.gap)
