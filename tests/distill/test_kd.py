"""KnowledgeDistillation against loops in float64, and its ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gkd.core.errors import ConfigError, DataError
from gkd.distill import KnowledgeDistillation
from tests.reference import kd as reference

TOLERANCE = [(torch.float32, 1e-5), (torch.float64, 1e-12)]


def batch(dtype: torch.dtype = torch.float32, num_classes: int = 9, spread: float = 2.5) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    student, teacher = (torch.randn(2, 4, num_classes, dtype=torch.float64) * spread).to(dtype).unbind()
    return student.contiguous(), teacher.contiguous(), torch.randint(0, num_classes, (4,))


def gradient_of(loss: KnowledgeDistillation, student: Tensor, *rest: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, *rest).total, leaf)
    return gradient


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCE)
def test_value_and_gradient_equal_the_reference(temperature: float, dtype: torch.dtype, tolerance: float) -> None:
    student, teacher, labels = batch(dtype)
    loss = KnowledgeDistillation(temperature=temperature)
    losses = loss(student, teacher, labels)
    assert tuple(losses.parts) == ("kl",)
    assert losses.total.dtype == dtype
    expected = reference.kd(student.tolist(), teacher.tolist(), temperature)
    assert float(losses.total) == pytest.approx(expected, rel=tolerance)
    assert float(losses.parts["kl"]) == float(losses.total)
    gradient = torch.tensor(reference.kd_gradient(student.tolist(), teacher.tolist(), temperature), dtype=torch.float64)
    found = gradient_of(loss, student, teacher, labels).double()
    torch.testing.assert_close(found, gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().max()))


def test_gradcheck() -> None:
    student, teacher, labels = batch(torch.float64)
    loss = KnowledgeDistillation()
    assert torch.autograd.gradcheck(lambda given: loss(given, teacher, labels).total, (student.requires_grad_(),))


def test_the_gradient_of_a_hot_softmax_is_the_gap_of_centred_logits() -> None:
    """The paper's equation 4: at high T the gradient tends to (z - v) / C; with T² in front it does not fade."""
    student, teacher, labels = batch(torch.float64)
    gradient = gradient_of(KnowledgeDistillation(temperature=1e4), student, teacher, labels) * len(labels)
    gap = student - student.mean(dim=1, keepdim=True) - (teacher - teacher.mean(dim=1, keepdim=True))
    torch.testing.assert_close(gradient, gap / student.shape[1], rtol=1e-2, atol=1e-3)


def test_labels_change_nothing() -> None:
    student, teacher, labels = batch()
    loss = KnowledgeDistillation()
    assert float(loss(student, teacher, labels).total) == float(loss(student, teacher, (labels + 3) % 9).total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(dtype: torch.dtype) -> None:
    student, _, labels = batch(dtype, spread=8.0)
    loss = KnowledgeDistillation()
    assert float(loss(student, student.clone(), labels).total) == 0
    assert (gradient_of(loss, student, student.clone(), labels) == 0).all()


def test_shifting_a_row_changes_nothing_and_permuting_rows_permutes_the_gradient() -> None:
    student, teacher, labels = batch(torch.float64)
    loss, order = KnowledgeDistillation(), torch.tensor([2, 0, 3, 1])
    shift = torch.tensor([[-900.0], [0.0], [3.0], [700.0]], dtype=torch.float64)
    expected, gradient = loss(student, teacher, labels).total, gradient_of(loss, student, teacher, labels)
    torch.testing.assert_close(loss(student + shift, teacher - shift, labels).total, expected)
    moved = (student[order], teacher[order], labels[order])
    torch.testing.assert_close(loss(*moved).total, expected)
    torch.testing.assert_close(gradient_of(loss, *moved), gradient[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [64.0, 3e4])
def test_finite_at_extreme_logits(dtype: torch.dtype, size: float) -> None:
    _, _, labels = batch()
    best = torch.nn.functional.one_hot(labels, 9).to(dtype) * 2 - 1
    for student, teacher in ((best * size, -best * size), (best * 0, best * size), (best * size, best * 0)):
        loss = KnowledgeDistillation(temperature=1.0)
        assert loss(student, teacher, labels).total.isfinite()
        gradient = gradient_of(loss, student, teacher, labels)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_many_classes_keep_their_precision_in_fp32() -> None:
    torch.manual_seed(0)
    shared = torch.randn(3, 20_000) * 6
    student, teacher = shared + torch.randn(3, 20_000) * 0.5 + 32.3, shared + torch.randn(3, 20_000) * 0.5
    labels, loss = torch.tensor([0, 40, 19_999]), KnowledgeDistillation()
    exact = loss(student.double(), teacher.double(), labels).total
    assert float(loss(student, teacher, labels).total) == pytest.approx(float(exact), rel=1e-5)


def test_inputs_stay_and_the_teacher_gets_no_gradient() -> None:
    student, teacher, labels = (tensor.clone() for tensor in batch())
    student.requires_grad_()
    teacher.requires_grad_()
    before = [tensor.detach().clone() for tensor in (student, teacher, labels)]
    KnowledgeDistillation()(student, teacher, labels).total.backward()
    assert teacher.grad is None
    assert all(torch.equal(a.detach(), b) for a, b in zip((student, teacher, labels), before, strict=True))


def test_no_second_mask_of_the_size_of_the_logits_is_kept() -> None:
    student, teacher, labels = batch()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        KnowledgeDistillation()(student.requires_grad_(), teacher, labels)
    masks = [tensor for tensor in kept if tensor.dtype == torch.bool]
    assert [mask.untyped_storage().nbytes() for mask in masks] == [1]
    assert sorted(str(tensor.dtype) for tensor in kept if tensor.shape == student.shape) == [
        "torch.bool",
        "torch.float32",
        "torch.float32",
    ]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match=rf"kd.temperature must be a number above 0, got {temperature}; 4 is usual"):
        KnowledgeDistillation(temperature=temperature)


def test_inputs_that_do_not_fit_are_refused() -> None:
    student, teacher, labels = batch()
    with pytest.raises(ConfigError, match=r"\(4, 9\) and teacher logits \(4, 8\) must be .* same classes"):
        KnowledgeDistillation()(student, teacher[:, :8], labels)
    with pytest.raises(ConfigError, match=r"labels must be int64 of shape \(4,\)"):
        KnowledgeDistillation()(student, teacher, labels[:2])
    with pytest.raises(DataError, match=r"labels must lie in \[0, 9\)"):
        KnowledgeDistillation()(student, teacher, labels + 9)


def test_settings_are_shown() -> None:
    assert "temperature=3.0" in repr(KnowledgeDistillation(temperature=3))
    assert KnowledgeDistillation().needs == {"logits"}
