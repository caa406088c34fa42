"""EmbeddingDistillation against loops in float64, its projection, and its ends."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.distill import EmbeddingDistillation
from tests.reference import embedding as reference
from tests.reference.grouped_kd import gradient as numeric_gradient

Distance = Literal["cosine", "l2"]
REFERENCES = {"cosine": reference.cosine_distance, "l2": reference.l2_distance}
DISTANCES: list[Distance] = ["cosine", "l2"]


def batch(dtype: torch.dtype = torch.float32, student_dim: int = 6, teacher_dim: int = 6) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    student = (torch.randn(5, student_dim, dtype=torch.float64) * 3).to(dtype)
    teacher = (torch.randn(5, teacher_dim, dtype=torch.float64) / 3).to(dtype)
    return student, teacher, torch.tensor([0, 1, 2, 0, 1])


def gradient_of(loss: EmbeddingDistillation, student: Tensor, *rest: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, *rest).total, leaf)
    return gradient


def projecting(distance: Distance = "cosine", dtype: torch.dtype = torch.float32) -> EmbeddingDistillation:
    torch.manual_seed(7)
    loss = EmbeddingDistillation(distance=distance)
    loss.set_dims(4, 6)
    return loss.to(dtype)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_value_equals_the_reference(distance: Distance, dtype: torch.dtype, tolerance: float) -> None:
    student, teacher, labels = batch(dtype)
    losses = EmbeddingDistillation(distance=distance)(student, teacher, labels)
    assert tuple(losses.parts) == ("distance",)
    assert losses.total.dtype == dtype
    assert float(losses.parts["distance"]) == float(losses.total)
    assert float(losses.total) == pytest.approx(REFERENCES[distance](student.tolist(), teacher.tolist()), rel=tolerance)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_equals_the_reference(distance: Distance) -> None:
    student, teacher, labels = batch()
    expected = numeric_gradient(lambda point: REFERENCES[distance](point, teacher.tolist()), student.tolist())
    gradient = gradient_of(EmbeddingDistillation(distance=distance), student, teacher, labels)
    torch.testing.assert_close(gradient.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_projected_value_and_both_gradients_equal_the_reference(distance: Distance) -> None:
    student, teacher, labels = batch(student_dim=4)
    loss = projecting(distance)
    assert loss.projection is not None
    weight = loss.projection.weight
    total = loss(student.requires_grad_(), teacher, labels).total

    def expected(point: list[list[float]], weights: list[list[float]]) -> float:
        return REFERENCES[distance](reference.project(point, weights), teacher.tolist())

    assert float(total.detach()) == pytest.approx(expected(student.tolist(), weight.tolist()), rel=1e-5)
    gradients = torch.autograd.grad(total, [student, weight])
    numeric = (
        numeric_gradient(lambda point: expected(point, weight.tolist()), student.tolist()),
        numeric_gradient(lambda weights: expected(student.tolist(), weights), weight.tolist()),
    )
    for found, due in zip(gradients, numeric, strict=True):
        torch.testing.assert_close(found.double(), torch.tensor(due, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(distance: Distance) -> None:
    student, teacher, labels = batch(torch.float64, student_dim=4)
    loss = projecting(distance, torch.float64)
    assert loss.projection is not None
    given = (student.requires_grad_(), loss.projection.weight)
    assert torch.autograd.gradcheck(lambda student, _: loss(student, teacher, labels).total, given)


def test_l2_is_twice_the_cosine_distance() -> None:
    given = batch()
    twice = 2 * EmbeddingDistillation(distance="cosine")(*given).total
    torch.testing.assert_close(EmbeddingDistillation(distance="l2")(*given).total, twice)


def test_only_directions_count() -> None:
    student, teacher, labels = batch(torch.float64)
    loss = EmbeddingDistillation()
    lengths = torch.tensor([[0.01], [1.0], [5.0], [100.0], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(
        loss(student * lengths, teacher / lengths, labels).total, loss(student, teacher, labels).total
    )
    assert float(loss(-teacher, teacher, labels).total) == pytest.approx(2)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(distance: Distance, dtype: torch.dtype) -> None:
    student, _, labels = batch(dtype)
    loss = EmbeddingDistillation(distance=distance)
    assert float(loss(student, student.clone(), labels).total) == 0
    assert (gradient_of(loss, student, student.clone(), labels) == 0).all()


def test_close_directions_keep_their_precision_in_fp32() -> None:
    _, teacher, labels = batch()
    student = teacher + 1e-4 * torch.randn(teacher.shape)
    exact = EmbeddingDistillation()(student.double(), teacher.double(), labels).total
    assert 0 < float(exact) < 1e-6  # 1 - cos in fp32 would be all rounding
    assert float(EmbeddingDistillation()(student, teacher, labels).total) == pytest.approx(float(exact), rel=1e-3)


def test_permuting_the_batch_permutes_the_gradient() -> None:
    student, teacher, labels = batch()
    loss, order = EmbeddingDistillation(), torch.tensor([4, 2, 0, 3, 1])
    moved = (student[order], teacher[order], labels[order])
    torch.testing.assert_close(loss(*moved).total, loss(student, teacher, labels).total)
    torch.testing.assert_close(gradient_of(loss, *moved), gradient_of(loss, student, teacher, labels)[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_and_zero_embeddings_are_finite_and_zero_ones_get_no_gradient(dtype: torch.dtype) -> None:
    student, teacher, labels = batch(dtype)
    student[0], student[1], student[2], teacher[3] = 0, 6e4, 6e-5, 0
    loss = EmbeddingDistillation()
    assert loss(student, teacher, labels).total.isfinite()
    gradient = gradient_of(loss, student, teacher, labels)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    assert (gradient[0] == 0).all()


def test_inputs_stay_and_the_teacher_gets_no_gradient() -> None:
    student, teacher, labels = (tensor.clone() for tensor in batch())
    student.requires_grad_()
    teacher.requires_grad_()
    before = [tensor.detach().clone() for tensor in (student, teacher, labels)]
    EmbeddingDistillation()(student, teacher, labels).total.backward()
    assert teacher.grad is None
    assert all(torch.equal(a.detach(), b) for a, b in zip((student, teacher, labels), before, strict=True))


def test_autocast_does_not_lower_the_precision() -> None:
    student, teacher, labels = batch(student_dim=4)
    loss = projecting()
    expected = loss(student, teacher, labels).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(student, teacher, labels).total, expected)
        assert loss(student.bfloat16(), teacher, labels).total.dtype == torch.float32


def test_equal_lengths_need_no_projection_and_draw_no_random_number() -> None:
    loss = EmbeddingDistillation()
    state = torch.get_rng_state()
    loss.set_dims(6, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(loss.parameters()) == []


def test_the_projection_is_linear_without_bias_and_drawn_from_the_global_generator() -> None:
    first, again = projecting(), projecting()
    assert [(name, tuple(value.shape)) for name, value in first.named_parameters()] == [("projection.weight", (6, 4))]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    first.set_dims(4, 6)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_learning_the_projection_alone_lowers_the_loss() -> None:
    torch.manual_seed(0)
    student = torch.randn(40, 4)
    teacher, labels = student @ torch.randn(4, 6), torch.zeros(40, dtype=torch.int64)
    loss = projecting()
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0, momentum=0.9)
    start = float(loss(student, teacher, labels).total.detach())
    for _ in range(100):
        optimizer.zero_grad()
        loss(student, teacher, labels).total.backward()
        optimizer.step()
    assert float(loss(student, teacher, labels).total.detach()) < 0.01 * start


def test_values_and_inputs_that_do_not_fit_are_refused() -> None:
    student, teacher, labels = batch()
    with pytest.raises(ConfigError, match=r"embedding\.distance must be cosine or l2, got `l1`"):
        EmbeddingDistillation(distance="l1")  # type: ignore[arg-type]
    loss = EmbeddingDistillation()
    with pytest.raises(ConfigError, match=r"embeddings \(5, 6\) and teacher embeddings \(4, 6\) must be .* same N"):
        loss(student, teacher[:4], labels)
    with pytest.raises(ConfigError, match="floating-point"):
        loss(student.long(), teacher, labels)
    with pytest.raises(ConfigError, match=r"labels must be int64 of shape \(5,\) beside embeddings \(5, 6\), got .*32"):
        loss(student, teacher, labels.int())
    with pytest.raises(ConfigError, match=r"have 5 numbers and the teacher's 6, .* equal lengths; call set_dims\(5, 6"):
        loss(student[:, :5], teacher, labels)
    with pytest.raises(ConfigError, match=r"made for 4 and 6; call set_dims\(6, 6\) before training"):
        projecting()(student, teacher, labels)


def test_settings_are_shown() -> None:
    assert "distance=l2" in repr(EmbeddingDistillation(distance="l2"))
    assert EmbeddingDistillation().distance == "cosine"
    assert EmbeddingDistillation().needs == {"embeddings"}
