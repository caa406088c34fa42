"""GroupedKD against float64 loops written from the paper's formulas: values, gradients, identities and ends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gkd.core import classes
from gkd.core.errors import ConfigError, DataError
from gkd.distill import CumulativeMass, GroupedKD, Grouping, TopK
from tests.reference import grouped_kd as reference

NUM_CLASSES = 12
GROUPINGS: list[Grouping] = [
    *(TopK(k=k, rank_by=side) for k, side in itertools.product((1, 4), ("student", "teacher"))),  # type: ignore[arg-type]
    *(
        CumulativeMass(threshold=0.8, scope=scope, rank_by=side, k_step=k_step, temperature=temperature)  # type: ignore[arg-type]
        for scope, side, k_step, temperature in itertools.product(
            ("batch", "sample"), ("student", "teacher"), (1, 4), (1.0, 2.0)
        )
    ),
]
PARTS = ("binary", "primary", "secondary")


def batch(num_samples: int = 4, dtype: torch.dtype = torch.float32, spread: float = 2.5) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    student, teacher = (torch.randn(2, num_samples, NUM_CLASSES, dtype=torch.float64) * spread).to(dtype).unbind()
    return student.contiguous(), teacher.contiguous(), torch.randint(0, NUM_CLASSES, (num_samples,))


def all_parts(grouping: Grouping, **options: Any) -> GroupedKD:
    return GroupedKD(grouping=grouping, **{"secondary_weight": 0.5, **options})


def groups_of(grouping: Grouping, *given: Tensor) -> reference.Groups:
    return [set(row.nonzero().flatten().tolist()) for row in grouping(*given)]


def gradient_of(loss: GroupedKD, part: str, student: Tensor, *rest: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    losses = loss(leaf, *rest)
    (gradient,) = torch.autograd.grad(losses.total if part == "total" else losses.parts[part], leaf)
    return gradient


@pytest.mark.parametrize("grouping", GROUPINGS, ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_parts_and_stats_equal_the_reference(grouping: Grouping, dtype: torch.dtype, tolerance: float) -> None:
    given = batch(dtype=dtype)
    groups = groups_of(grouping, *given)
    expected = reference.grouped_kd(given[0].tolist(), given[1].tolist(), groups, 4.0)
    losses = all_parts(grouping)(*given)
    assert tuple(losses.parts) == PARTS
    for name, value in {**losses.parts, **losses.stats}.items():
        if not name.endswith("_size"):
            assert float(value) == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name
    assert float(losses.stats["group_size"]) == pytest.approx(sum(map(len, groups)) / len(groups))
    assert float(losses.stats["secondary_size"]) == pytest.approx(
        given[0].shape[1] - sum(map(len, groups)) / len(groups)
    )
    assert losses.total.dtype == dtype
    assert all(part.dtype == dtype for part in losses.parts.values())


@pytest.mark.parametrize("grouping", GROUPINGS, ids=repr)
@pytest.mark.parametrize("part", PARTS)
def test_gradients_equal_the_reference(grouping: Grouping, part: str) -> None:
    student, teacher, labels = batch()
    groups = groups_of(grouping, student, teacher, labels)
    expected = reference.gradient(
        lambda point: reference.grouped_kd(point, teacher.tolist(), groups, 4.0)[part], student.tolist()
    )
    gradient = gradient_of(all_parts(grouping), part, student, teacher, labels)
    torch.testing.assert_close(gradient.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 4.0])
def test_temperature(temperature: float) -> None:
    student, teacher, labels = batch(dtype=torch.float64)
    loss = all_parts(TopK(k=4), temperature=temperature)
    groups = groups_of(TopK(k=4), student, teacher, labels)
    expected = reference.grouped_kd(student.tolist(), teacher.tolist(), groups, temperature)
    losses = loss(student, teacher, labels)
    assert {name: float(losses.parts[name]) for name in PARTS} == pytest.approx(
        {name: expected[name] for name in PARTS}
    )


def test_total_is_the_weighted_sum_and_so_is_its_gradient() -> None:
    given = batch(dtype=torch.float64)
    weights = {"binary": 0.7, "primary": 3.0, "secondary": 0.2}
    loss = GroupedKD(grouping=TopK(k=4), **{f"{name}_weight": weight for name, weight in weights.items()})  # type: ignore[arg-type]
    losses = loss(*given)
    assert float(losses.total) == pytest.approx(sum(weights[name] * float(losses.parts[name]) for name in PARTS))
    expected = sum(weights[name] * gradient_of(loss, name, *given) for name in PARTS)
    torch.testing.assert_close(gradient_of(loss, "total", *given), expected)


def test_the_published_weights_are_the_defaults_and_leave_secondary_out() -> None:
    given = batch()
    losses = GroupedKD(grouping=TopK(k=4))(*given)
    assert tuple(losses.parts) == ("binary", "primary")
    assert float(losses.total) == pytest.approx(float(8 * losses.parts["primary"] + losses.parts["binary"]))
    default = GroupedKD()
    assert (default.temperature, repr(default.grouping)) == (4.0, repr(CumulativeMass()))
    assert default.needs == {"logits"}


def test_secondary_classes_feel_only_binary_at_the_published_weights() -> None:
    given = batch(dtype=torch.float64)
    is_primary = TopK(k=4)(*given)
    gradient = gradient_of(GroupedKD(grouping=TopK(k=4), binary_weight=0.0), "total", *given)
    assert (gradient[~is_primary] == 0).all()
    assert (gradient[is_primary] != 0).all()


@pytest.mark.parametrize("k", [1, 2, 6, 11, 12])
def test_masses_as_weights_give_the_full_divergence(k: int) -> None:
    """KL = Binary + b_P·Primary + b_S·Secondary for each sample, with the teacher's masses."""
    student, teacher, labels = batch(dtype=torch.float64)
    loss = all_parts(TopK(k=k), temperature=3.0)
    for s, t, label in zip(student, teacher, labels, strict=True):
        losses = loss(s[None], t[None], label[None])
        mass = losses.stats["teacher_primary_mass"]
        whole = losses.parts["binary"] + mass * losses.parts["primary"] + (1 - mass) * losses.parts["secondary"]
        full = reference.divergence(reference.softmax(t.tolist(), 3.0), reference.softmax(s.tolist(), 3.0))
        assert float(whole) == pytest.approx(full * 9, abs=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_target_alone_is_decoupled_distillation(temperature: float) -> None:
    student, teacher, labels = batch(dtype=torch.float64)
    losses = all_parts(TopK(k=1), temperature=temperature)(student, teacher, labels)
    given = (student.tolist(), teacher.tolist(), labels.tolist())
    target_term, other_term = reference.decoupled_kd(*given, temperature)
    assert float(losses.parts["binary"]) == pytest.approx(target_term, rel=1e-10)
    assert float(losses.parts["secondary"]) == pytest.approx(other_term, rel=1e-10)
    assert float(losses.parts["primary"]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("grouping", GROUPINGS[::3], ids=repr)
@pytest.mark.parametrize("part", ["total", *PARTS])
def test_gradcheck(grouping: Grouping, part: str) -> None:
    student, teacher, labels = batch(dtype=torch.float64)
    fixed = grouping(student, teacher, labels)
    loss = all_parts(lambda *_: fixed)

    def value(student: Tensor) -> Tensor:
        losses = loss(student, teacher, labels)
        return losses.total if part == "total" else losses.parts[part]

    assert torch.autograd.gradcheck(value, (student.requires_grad_(),))


@pytest.mark.parametrize("grouping", GROUPINGS[::2], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(grouping: Grouping, dtype: torch.dtype) -> None:
    student, _, labels = batch(dtype=dtype, spread=8.0)
    losses = all_parts(grouping)(student, student.clone(), labels)
    assert [float(losses.parts[name]) for name in PARTS] == [0, 0, 0]
    assert (gradient_of(all_parts(grouping), "total", student, student.clone(), labels) == 0).all()


@pytest.mark.parametrize("grouping", GROUPINGS[::3], ids=repr)
def test_shifting_every_logit_of_a_row_changes_nothing(grouping: Grouping) -> None:
    student, teacher, labels = batch(dtype=torch.float64)
    moved = student + torch.tensor([[-900.0], [0.0], [3.0], [700.0]], dtype=torch.float64)
    loss = all_parts(grouping)
    torch.testing.assert_close(loss(moved, teacher, labels).parts, loss(student, teacher, labels).parts)


@pytest.mark.parametrize("grouping", GROUPINGS[::2], ids=repr)
def test_permuting_the_batch_permutes_the_gradient(grouping: Grouping) -> None:
    student, teacher, labels = batch()
    order = torch.tensor([2, 0, 3, 1])
    loss = all_parts(grouping)
    moved = (student[order], teacher[order], labels[order])
    torch.testing.assert_close(loss(*moved).parts, loss(student, teacher, labels).parts)
    gradient = gradient_of(loss, "total", student, teacher, labels)
    torch.testing.assert_close(gradient_of(loss, "total", *moved), gradient[order])


@pytest.mark.parametrize("entries", [1, NUM_CLASSES * 3, 10_000])
def test_the_size_of_chunks_changes_nothing(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = batch(num_samples=7)
    expected, gradient = all_parts(TopK(k=4))(*given), gradient_of(all_parts(TopK(k=4)), "total", *given)
    monkeypatch.setattr(classes, "_CPU_CHUNK_ENTRIES", entries)
    torch.testing.assert_close(all_parts(TopK(k=4))(*given).parts, expected.parts)
    torch.testing.assert_close(gradient_of(all_parts(TopK(k=4)), "total", *given), gradient)


def test_inputs_stay_and_the_teacher_gets_no_gradient() -> None:
    student, teacher, labels = (tensor.clone() for tensor in batch())
    student.requires_grad_()
    teacher.requires_grad_()
    before = [tensor.detach().clone() for tensor in (student, teacher, labels)]
    losses = all_parts(TopK(k=4))(student, teacher, labels)
    losses.total.backward()
    assert teacher.grad is None
    assert all(torch.equal(a.detach(), b) for a, b in zip((student, teacher, labels), before, strict=True))
    assert not any(value.requires_grad for value in losses.stats.values())


def test_backward_keeps_only_the_logits_the_groups_and_vectors() -> None:
    given = batch()
    given[0].requires_grad_()
    kept: list[tuple[torch.dtype, tuple[int, ...]]] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append((t.dtype, tuple(t.shape))), t)[1], lambda t: t
    ):
        all_parts(TopK(k=4))(*given)
    matrix = (4, NUM_CLASSES)
    wide = sorted(str(dtype) for dtype, shape in kept if shape == matrix)
    assert wide == ["torch.bool", "torch.float32", "torch.float32"]
    assert [shape for _, shape in kept if shape != matrix and len(shape) > 0] == [(4, 4)]


def test_second_derivatives_are_refused() -> None:
    student, teacher, labels = batch()
    student.requires_grad_()
    losses = GroupedKD(grouping=TopK(k=4))(student, teacher, labels)
    (gradient,) = torch.autograd.grad(losses.total, student, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("grouping", GROUPINGS[::2], ids=repr)
@pytest.mark.parametrize("size", [64.0, 3e4])
def test_finite_at_extreme_logits(grouping: Grouping, dtype: torch.dtype, size: float) -> None:
    """Secondary masses that round to 0 on one side, on the other, and on both."""
    _, _, labels = batch()
    best = torch.nn.functional.one_hot(labels, NUM_CLASSES).to(dtype) * 2 - 1
    for student, teacher in itertools.product((best * size, -best * size, best * 0), repeat=2):
        loss = all_parts(grouping, temperature=1.0)
        losses = loss(student, teacher, labels)
        assert all(value.isfinite() for value in (losses.total, *losses.parts.values(), *losses.stats.values()))
        gradient = gradient_of(loss, "total", student, teacher, labels)
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype) -> None:
    student, teacher, labels = batch(dtype=dtype)
    loss = all_parts(TopK(k=4))
    losses, expected = loss(student, teacher, labels), loss(student.float(), teacher.float(), labels)
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses.parts, expected.parts, rtol=0, atol=0)
    gradient = gradient_of(loss, "total", student, teacher, labels)
    assert torch.equal(gradient, gradient_of(loss, "total", student.float(), teacher.float(), labels).to(dtype))


@pytest.mark.parametrize("grouping", [TopK(k=NUM_CLASSES), TopK(), CumulativeMass(k_step=100, threshold=0.999)])
def test_an_empty_secondary_has_binary_zero_and_primary_the_full_divergence(grouping: Grouping) -> None:
    student, teacher, labels = batch()
    losses = all_parts(grouping)(student, teacher, labels)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    full = sum(reference.divergence(reference.softmax(t, 4.0), reference.softmax(s, 4.0)) for s, t in rows)
    assert float(losses.parts["binary"]) == 0
    assert float(losses.parts["secondary"]) == 0
    assert float(losses.parts["primary"]) == pytest.approx(full * 16 / 4, rel=1e-5)
    assert float(losses.stats["student_primary_mass"]) == 1
    for part in ("binary", "secondary"):
        assert (gradient_of(all_parts(grouping), part, student, teacher, labels) == 0).all()


@pytest.mark.parametrize("k", [1, 2])
def test_one_sample_of_two_classes(k: int) -> None:
    student, teacher = torch.tensor([[0.3, -1.0]]), torch.tensor([[2.0, 0.5]])
    groups: reference.Groups = [{1} if k == 1 else {0, 1}]
    expected = reference.grouped_kd(student.tolist(), teacher.tolist(), groups, 4.0)
    losses = all_parts(TopK(k=k))(student, teacher, torch.tensor([1]))
    assert {name: float(losses.parts[name]) for name in PARTS} == pytest.approx(
        {name: expected[name] for name in PARTS}, rel=1e-5, abs=1e-6
    )


def test_many_classes_keep_their_precision_in_fp32() -> None:
    """Thousands of classes at scale 64, where large log-sum-exps could cancel."""
    torch.manual_seed(0)
    shared = torch.randn(3, 5000) * 6
    student, teacher = shared + torch.randn(3, 5000) * 0.5, shared + torch.randn(3, 5000) * 0.5
    labels = torch.tensor([0, 40, 4999])
    student[range(3), labels] += 60
    teacher[range(3), labels] += 64
    student += 32.3  # changes nothing but the size of the numbers
    loss = all_parts(TopK(k=700))
    losses, exact = loss(student, teacher, labels), loss(student.double(), teacher.double(), labels)
    for name in PARTS:
        assert float(losses.parts[name]) == pytest.approx(float(exact.parts[name]), rel=1e-5), name
    gradient = gradient_of(loss, "total", student, teacher, labels).double()
    expected = gradient_of(loss, "total", student.double(), teacher.double(), labels)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


def test_learning_from_it_reaches_the_teacher_inside_primary() -> None:
    student, teacher, labels = batch(dtype=torch.float64)
    loss = GroupedKD(grouping=TopK(k=4, rank_by="teacher"))
    student.requires_grad_()
    start = float(loss(student, teacher, labels).parts["primary"].detach())
    for _ in range(200):
        (gradient,) = torch.autograd.grad(loss(student, teacher, labels).total, student)
        student = (student.detach() - 0.2 * gradient).requires_grad_()
    assert float(loss(student, teacher, labels).parts["primary"].detach()) < 1e-3 * start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "gkd.temperature must be a number above 0, got 0.0"),
        ({"temperature": math.nan}, "got nan"),
        ({"primary_weight": -1.0}, "gkd.primary_weight must be a number of at least 0, got -1.0"),
        ({"binary_weight": math.inf}, "gkd.binary_weight .* got inf"),
        ({"secondary_weight": -0.1}, "gkd.secondary_weight .* got -0.1"),
        ({"primary_weight": 0.0, "binary_weight": 0.0}, "all three weights are 0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GroupedKD(**options)  # type: ignore[arg-type]


def test_inputs_that_do_not_fit_are_refused() -> None:
    student, teacher, labels = batch()
    with pytest.raises(ConfigError, match=r"\(4, 12\) and teacher logits \(4, 11\) must be .* same classes"):
        GroupedKD()(student, teacher[:, :11], labels)
    with pytest.raises(ConfigError, match="floating-point"):
        GroupedKD()(student, teacher.long(), labels)
    with pytest.raises(ConfigError, match=r"labels must be int64 of shape \(4,\)"):
        GroupedKD()(student, teacher, labels[:2])
    with pytest.raises(DataError, match=r"labels must lie in \[0, 12\)"):
        GroupedKD()(student, teacher, labels + 12)


def test_settings_are_shown() -> None:
    shown = repr(GroupedKD(grouping=TopK(k=3)))
    assert "temperature=4.0" in shown
    assert "primary_weight=8.0" in shown
    assert "TopK(k=3" in shown
