"""DecoupledKD against loops in float64, against Grouped KD with the target alone, and its ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gkd.core.errors import ConfigError, DataError
from gkd.distill import DecoupledKD, GroupedKD, KnowledgeDistillation, TopK
from tests.reference import dkd as reference
from tests.reference.grouped_kd import gradient as numeric_gradient

PARTS = ("target", "non_target")


def batch(dtype: torch.dtype = torch.float32, num_classes: int = 9, spread: float = 2.5) -> tuple[Tensor, ...]:
    torch.manual_seed(2)
    student, teacher = (torch.randn(2, 4, num_classes, dtype=torch.float64) * spread).to(dtype).unbind()
    return student.contiguous(), teacher.contiguous(), torch.randint(0, num_classes, (4,))


def gradient_of(loss: torch.nn.Module, part: str, student: Tensor, *rest: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    losses = loss(leaf, *rest)
    (gradient,) = torch.autograd.grad(losses.total if part == "total" else losses.parts[part], leaf)
    return gradient


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_parts_equal_the_reference(temperature: float, dtype: torch.dtype, tolerance: float) -> None:
    student, teacher, labels = batch(dtype)
    expected = reference.dkd(student.tolist(), teacher.tolist(), labels.tolist(), temperature)
    losses = DecoupledKD(temperature=temperature)(student, teacher, labels)
    assert tuple(losses.parts) == PARTS
    assert losses.total.dtype == dtype
    for name in PARTS:
        assert float(losses.parts[name]) == pytest.approx(expected[name], rel=tolerance), name
    assert float(losses.total) == pytest.approx(expected["target"] + 8 * expected["non_target"], rel=tolerance)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradients_equal_the_reference(part: str, temperature: float) -> None:
    student, teacher, labels = batch()
    expected = numeric_gradient(
        lambda point: reference.dkd(point, teacher.tolist(), labels.tolist(), temperature)[part], student.tolist()
    )
    gradient = gradient_of(DecoupledKD(temperature=temperature), part, student, teacher, labels)
    torch.testing.assert_close(gradient.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_it_is_grouped_kd_with_the_target_alone_in_primary() -> None:
    given = batch()
    grouped = GroupedKD(
        temperature=2.0, primary_weight=5.0, binary_weight=0.7, secondary_weight=3.0, grouping=TopK(k=1)
    )
    ours = DecoupledKD(temperature=2.0, target_weight=0.7, non_target_weight=3.0)
    theirs, losses = grouped(*given), ours(*given)
    assert torch.equal(losses.parts["target"], theirs.parts["binary"])
    assert torch.equal(losses.parts["non_target"], theirs.parts["secondary"])
    assert float(theirs.parts["primary"]) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(losses.total, theirs.total)
    torch.testing.assert_close(gradient_of(ours, "total", *given), gradient_of(grouped, "total", *given))


def test_the_teachers_mass_of_the_others_makes_it_the_full_divergence() -> None:
    """The paper's reformulation: KD = TCKD + (1 - p_t)·NCKD for each sample."""
    for student, teacher, label in zip(*batch(torch.float64), strict=True):
        given = (student[None], teacher[None], label[None])
        losses = DecoupledKD()(*given)
        others = 1 - losses.stats["teacher_target_mass"]
        whole = losses.parts["target"] + others * losses.parts["non_target"]
        torch.testing.assert_close(whole, KnowledgeDistillation()(*given).total)


def test_stats_are_the_mean_probabilities_of_the_target() -> None:
    student, teacher, labels = batch(torch.float64)
    stats = DecoupledKD()(student, teacher, labels).stats
    for name, logits in (("student_target_mass", student), ("teacher_target_mass", teacher)):
        expected = (logits / 4).softmax(dim=1)[range(4), labels].mean()
        torch.testing.assert_close(stats[name], expected)
    assert set(stats) == {"student_target_mass", "teacher_target_mass"}


def test_a_non_target_weight_of_0_leaves_its_part_out() -> None:
    losses = DecoupledKD(non_target_weight=0.0, target_weight=2.0)(*batch())
    assert tuple(losses.parts) == ("target",)
    assert float(losses.total) == pytest.approx(2 * float(losses.parts["target"]))


def test_gradcheck() -> None:
    student, teacher, labels = batch(torch.float64)
    loss = DecoupledKD()
    assert torch.autograd.gradcheck(lambda given: loss(given, teacher, labels).total, (student.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(dtype: torch.dtype) -> None:
    student, _, labels = batch(dtype, spread=8.0)
    losses = DecoupledKD()(student, student.clone(), labels)
    assert [float(value) for value in (losses.total, *losses.parts.values())] == [0, 0, 0]
    assert (gradient_of(DecoupledKD(), "total", student, student.clone(), labels) == 0).all()


def test_permuting_the_batch_permutes_the_gradient() -> None:
    student, teacher, labels = batch()
    order = torch.tensor([2, 0, 3, 1])
    moved = (student[order], teacher[order], labels[order])
    torch.testing.assert_close(DecoupledKD()(*moved).parts, DecoupledKD()(student, teacher, labels).parts)
    gradient = gradient_of(DecoupledKD(), "total", student, teacher, labels)
    torch.testing.assert_close(gradient_of(DecoupledKD(), "total", *moved), gradient[order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [64.0, 3e4])
def test_finite_at_extreme_logits(dtype: torch.dtype, size: float) -> None:
    """A target whose probability rounds to 1 on one side, on the other and on both."""
    _, _, labels = batch()
    best = torch.nn.functional.one_hot(labels, 9).to(dtype) * 2 - 1
    for student, teacher in ((best * size, -best * size), (best * size, best * 0), (best * size, best * size)):
        loss = DecoupledKD(temperature=1.0)
        losses = loss(student, teacher, labels)
        assert all(value.isfinite() for value in (losses.total, *losses.parts.values(), *losses.stats.values()))
        gradient = gradient_of(loss, "total", student, teacher, labels)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_inputs_stay_and_the_teacher_gets_no_gradient() -> None:
    student, teacher, labels = (tensor.clone() for tensor in batch())
    student.requires_grad_()
    teacher.requires_grad_()
    before = [tensor.detach().clone() for tensor in (student, teacher, labels)]
    DecoupledKD()(student, teacher, labels).total.backward()
    assert teacher.grad is None
    assert all(torch.equal(a.detach(), b) for a, b in zip((student, teacher, labels), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "dkd.temperature must be a number above 0, got 0.0"),
        ({"target_weight": -1.0}, "dkd.target_weight must be a number of at least 0, got -1.0"),
        ({"non_target_weight": math.nan}, "dkd.non_target_weight .* got nan"),
        ({"target_weight": 0.0, "non_target_weight": 0.0}, "dkd: all weights are 0, so there is nothing to learn"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecoupledKD(**options)


def test_inputs_that_do_not_fit_are_refused() -> None:
    student, teacher, labels = batch()
    with pytest.raises(ConfigError, match=r"\(4, 9\) and teacher logits \(4, 8\) must be .* same classes"):
        DecoupledKD()(student, teacher[:, :8], labels)
    with pytest.raises(ConfigError, match=r"labels must be int64 of shape \(4,\)"):
        DecoupledKD()(student, teacher, labels[:2])
    with pytest.raises(DataError, match=r"labels must lie in \[0, 9\)"):
        DecoupledKD()(student, teacher, labels - 9)


def test_settings_are_shown() -> None:
    shown = repr(DecoupledKD(non_target_weight=2))
    assert "temperature=4.0, target_weight=1.0, non_target_weight=2.0" in shown
    assert DecoupledKD().needs == {"logits"}
