"""Grouped KD row by row: equal to the float64 loops and to the way by masks, at every end of its range."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gkd.core import classes
from gkd.core.types import Losses
from gkd.distill import CumulativeMass, GroupedKD, Grouping, TopK, grouped_rows
from tests.reference import grouped_kd as reference

GROUPINGS: list[Grouping] = [
    *(TopK(k=k, rank_by=side) for k, side in itertools.product((1, 4, 11, 12), ("student", "teacher"))),  # type: ignore[arg-type]
    *(
        CumulativeMass(threshold=0.8, scope=scope, rank_by=side, k_step=k_step)  # type: ignore[arg-type]
        for scope, side, k_step in itertools.product(("batch", "sample"), ("student", "teacher"), (1, 4))
    ),
]
PARTS = ("binary", "primary")


@pytest.fixture(autouse=True)
def _every_row_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "_FEWEST_LONG_ROW_ENTRIES", 1)


def batch(num_classes: int = 12, dtype: torch.dtype = torch.float32, spread: float = 2.5) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    student, teacher = (torch.randn(2, 4, num_classes, dtype=torch.float64) * spread).to(dtype).unbind()
    return student.contiguous(), teacher.contiguous(), torch.randint(0, num_classes, (4,))


def big_batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of scale 64 with a margin, alike but not equal."""
    torch.manual_seed(4)
    teacher = torch.randn(3, 12_345) * 3.8
    student, labels = teacher + torch.randn(3, 12_345) * 1.3, torch.tensor([0, 77, 12_344])
    student[range(3), labels], teacher[range(3), labels] = 12.0, 19.0
    return student.to(dtype), teacher.to(dtype), labels


def by_mask(loss: GroupedKD, *given: Tensor) -> Losses:
    return loss._by_mask(*given)


def gradient(loss: GroupedKD, part: str, student: Tensor, *rest: Tensor, masks: bool = False) -> Tensor:
    leaf = student.clone().requires_grad_()
    losses = by_mask(loss, leaf, *rest) if masks else loss(leaf, *rest)
    (result,) = torch.autograd.grad(losses.total if part == "total" else losses.parts[part], leaf)
    return result


def careful_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the rows that go the careful way from here on."""
    seen: list[int] = []
    careful = grouped_rows._Rows._row_carefully

    def watched(rows: Any, index: int, out: Tensor) -> Any:
        seen.append(index)
        return careful(rows, index, out)

    monkeypatch.setattr(grouped_rows._Rows, "_row_carefully", watched)
    return seen


@pytest.mark.parametrize("grouping", GROUPINGS, ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_parts_and_stats_equal_the_reference(grouping: Grouping, dtype: torch.dtype, tolerance: float) -> None:
    given = batch(dtype=dtype)
    groups = [set(row.nonzero().flatten().tolist()) for row in grouping(*given)]
    expected = reference.grouped_kd(given[0].tolist(), given[1].tolist(), groups, 4.0)
    losses, masked = GroupedKD(grouping=grouping)(*given), by_mask(GroupedKD(grouping=grouping), *given)
    assert tuple(losses.parts) == PARTS
    for name, value in {**losses.parts, **losses.stats}.items():
        assert value.dtype == (dtype if name in PARTS else torch.float64)
        assert float(value) == pytest.approx(float(({**masked.parts, **masked.stats})[name]), rel=tolerance, abs=1e-6)
        if not name.endswith("_size"):
            assert float(value) == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("grouping", GROUPINGS, ids=repr)
@pytest.mark.parametrize("part", [*PARTS, "total"])
def test_gradients_equal_the_reference(grouping: Grouping, part: str) -> None:
    student, teacher, labels = batch()
    groups = [set(row.nonzero().flatten().tolist()) for row in grouping(student, teacher, labels)]

    def value(point: Any) -> float:
        parts = reference.grouped_kd(point, teacher.tolist(), groups, 4.0)
        return parts[part] if part != "total" else 8 * parts["primary"] + parts["binary"]

    expected = torch.tensor(reference.gradient(value, student.tolist()), dtype=torch.float64)
    result = gradient(GroupedKD(grouping=grouping), part, student, teacher, labels)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("weights", [(8.0, 1.0), (0.0, 1.0), (3.0, 0.0), (1e-3, 50.0)])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0, 20.0])
def test_many_classes_keep_their_precision(
    weights: tuple[float, float], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, labels = big_batch()
    student += 32.3  # changes nothing but the size of the numbers
    careful = careful_rows(monkeypatch)
    loss = GroupedKD(
        grouping=TopK(k=1400), temperature=temperature, primary_weight=weights[0], binary_weight=weights[1]
    )
    losses, exact = loss(student, teacher, labels), by_mask(loss, student.double(), teacher.double(), labels)
    assert not careful
    rounding = 1e-7 * temperature**2  # of sums near 1 in fp32, before the loss takes T² times them
    for name in PARTS:
        assert float(losses.parts[name]) == pytest.approx(float(exact.parts[name]), rel=1e-5, abs=rounding), name
    result = gradient(loss, "total", student, teacher, labels).double()
    expected = gradient(loss, "total", student.double(), teacher.double(), labels, masks=True)
    assert (result - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("tiny", [1e-4, 1e-8, 1e-15, 1e-20, 1e-40])
@pytest.mark.parametrize("group", ["primary", "secondary"])
def test_tiny_masses_keep_their_precision(group: str, tiny: float) -> None:
    student, teacher, labels = big_batch()
    loss = GroupedKD(grouping=TopK(k=1400), temperature=1.0)
    is_primary = loss.grouping(student, teacher, labels)
    move = math.log(tiny) * (is_primary if group == "primary" else ~is_primary)
    student, teacher = (student + move, teacher) if group == "secondary" else (student, teacher + move)
    losses, exact = loss(student, teacher, labels), by_mask(loss, student.double(), teacher.double(), labels)
    for name in PARTS:
        assert float(losses.parts[name]) == pytest.approx(float(exact.parts[name]), rel=1e-5), name
    result = gradient(loss, "total", student, teacher, labels).double()
    expected = gradient(loss, "total", student.double(), teacher.double(), labels, masks=True)
    assert (result - expected).norm() < 1e-5 * expected.norm()


def test_a_sum_out_of_range_sends_that_row_the_careful_way(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, labels = big_batch()
    student[1, 77] = 3e4
    careful = careful_rows(monkeypatch)
    loss = GroupedKD(grouping=TopK(k=1400))
    losses, exact = loss(student, teacher, labels), by_mask(loss, student.double(), teacher.double(), labels)
    assert careful == [1]
    torch.testing.assert_close(
        {name: part.double() for name, part in losses.parts.items()}, exact.parts, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("grouping", GROUPINGS[::2], ids=repr)
@pytest.mark.parametrize("size", [64.0, 3e4])
def test_finite_at_extreme_logits(grouping: Grouping, dtype: torch.dtype, size: float) -> None:
    _, _, labels = batch()
    best = torch.nn.functional.one_hot(labels, 12).to(dtype) * 2 - 1
    loss = GroupedKD(grouping=grouping, temperature=1.0)
    for student, teacher in itertools.product((best * size, -best * size, best * 0), repeat=2):
        losses = loss(student, teacher, labels)
        assert all(value.isfinite() for value in (losses.total, *losses.parts.values(), *losses.stats.values()))
        result = gradient(loss, "total", student, teacher, labels)
        assert result.dtype == dtype
        assert result.isfinite().all()


@pytest.mark.parametrize("levels", [2, 3, 40])
@pytest.mark.parametrize("k", [2, 30, 700, 5000, 12_000])
def test_ties_go_to_the_lower_class_index(k: int, levels: int) -> None:
    student, teacher, labels = big_batch()
    student = torch.randint(0, levels, student.shape).float()
    loss = GroupedKD(grouping=TopK(k=k), binary_weight=0.0)
    is_primary = loss.grouping(student, teacher, labels)
    result = gradient(loss, "total", student, teacher, labels)
    assert torch.equal(result != 0, is_primary)
    torch.testing.assert_close(result, gradient(loss, "total", student, teacher, labels, masks=True))


@pytest.mark.parametrize("grouping", GROUPINGS[::3], ids=repr)
def test_backward_can_be_asked_again_and_in_parts(grouping: Grouping) -> None:
    student, *rest = batch(dtype=torch.float64)
    leaf, loss = student.clone().requires_grad_(), GroupedKD(grouping=grouping)
    losses = loss(leaf, *rest)
    once, twice = (torch.autograd.grad(losses.total * 3, leaf, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(twice, once)
    parts = {name: torch.autograd.grad(losses.parts[name], leaf, retain_graph=True)[0] for name in PARTS}
    torch.testing.assert_close(once, 3 * (8 * parts["primary"] + parts["binary"]))
    mixed = losses.total + 2 * losses.parts["binary"] - losses.parts["primary"]
    torch.testing.assert_close(torch.autograd.grad(mixed, leaf)[0], once / 3 + 2 * parts["binary"] - parts["primary"])


def test_a_handed_over_gradient_is_not_written_again() -> None:
    student, *rest = batch()
    leaf = student.requires_grad_()
    losses = GroupedKD(grouping=TopK(k=4))(leaf, *rest)
    losses.total.backward(retain_graph=True)
    first = leaf.grad
    assert first is not None
    kept, leaf.grad = first.clone(), None
    (5 * losses.total).backward()
    assert torch.equal(first, kept)
    torch.testing.assert_close(leaf.grad, 5 * kept)


def test_gradcheck() -> None:
    student, teacher, labels = batch(dtype=torch.float64)
    loss = GroupedKD(grouping=TopK(k=4, rank_by="teacher"))

    def value(student: Tensor) -> Tensor:
        return loss(student, teacher, labels).total

    # The second backward is computed in another way, so its last digits differ.
    assert torch.autograd.gradcheck(value, (student.requires_grad_(),), nondet_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("grouping", [TopK(k=1400), TopK(k=9000), CumulativeMass()], ids=repr)
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(grouping: Grouping, dtype: torch.dtype) -> None:
    student, _, labels = big_batch(dtype)
    losses = GroupedKD(grouping=grouping)(student, student.clone(), labels)
    assert [float(losses.parts[name]) for name in PARTS] == [0, 0]
    assert (gradient(GroupedKD(grouping=grouping), "total", student, student.clone(), labels) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_small_gradient_in_half_precision_survives_loss_scaling(dtype: torch.dtype) -> None:
    student, teacher, labels = big_batch(dtype)
    leaf, loss = student.clone().requires_grad_(), GroupedKD(grouping=TopK(k=1400))
    (result,) = torch.autograd.grad(loss(leaf, teacher, labels).total * 65536, leaf)
    expected = gradient(loss, "total", student.float(), teacher.float(), labels) * 65536
    torch.testing.assert_close(result, expected.to(dtype), rtol=1e-6, atol=0)


def test_mixed_types_strides_and_untouched_inputs() -> None:
    student, teacher, labels = big_batch()
    expected = gradient(GroupedKD(grouping=TopK(k=1400)), "total", student, teacher.bfloat16().float(), labels)
    before = student.clone()
    strided = student.t().contiguous().t()
    result = gradient(GroupedKD(grouping=TopK(k=1400)), "total", strided, teacher.bfloat16(), labels)
    torch.testing.assert_close(result, expected)
    assert torch.equal(student, before)


@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_reaches_the_loss(side: int) -> None:
    given = big_batch()
    given[side][1, 500] = math.nan
    losses = GroupedKD(grouping=TopK(k=1400))(*given)
    assert losses.total.isnan()


def test_nothing_as_large_as_the_logits_is_kept_but_they_and_the_gradient() -> None:
    student, teacher, labels = big_batch()
    student.requires_grad_()
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        losses = GroupedKD(grouping=TopK(k=1400))(student, teacher, labels)
    assert sorted(kept) == sorted([tuple(student.shape)] * 2 + [(3,), (1,), (4, 3)])
    losses.total.backward()
    with torch.no_grad():
        again = GroupedKD(grouping=TopK(k=1400))(student, teacher, labels)
    assert not again.total.requires_grad
    assert torch.equal(again.total, losses.total.detach())


def test_second_derivatives_are_refused() -> None:
    student, teacher, labels = batch()
    student.requires_grad_()
    losses = GroupedKD(grouping=TopK(k=4))(student, teacher, labels)
    (result,) = torch.autograd.grad(losses.total, student, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        result.sum().backward()
