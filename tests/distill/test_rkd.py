"""RelationalKD against loops in float64, duplicates, tiny batches, memory and its ends."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gkd.core.errors import ConfigError
from gkd.distill import RelationalKD, rkd
from tests.reference import rkd as reference
from tests.reference.grouped_kd import gradient as numeric_gradient

PARTS = ("distance", "angle")


def batch(dtype: torch.dtype = torch.float32, num_images: int = 5, teacher_dim: int = 6) -> tuple[Tensor, ...]:
    torch.manual_seed(4)
    student = (torch.randn(num_images, 4, dtype=torch.float64) * 3).to(dtype)
    teacher = (torch.randn(num_images, teacher_dim, dtype=torch.float64) / 3).to(dtype)
    return student, teacher, torch.arange(num_images)


def gradient_of(loss: RelationalKD, part: str, student: Tensor, *rest: Tensor) -> Tensor:
    leaf = student.clone().requires_grad_()
    losses = loss(leaf, *rest)
    (gradient,) = torch.autograd.grad(losses.total if part == "total" else losses.parts[part], leaf)
    return gradient


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_parts_equal_the_reference(num_images: int, dtype: torch.dtype, tolerance: float) -> None:
    student, teacher, labels = batch(dtype, num_images)
    expected = reference.rkd(student.tolist(), teacher.tolist())
    losses = RelationalKD()(student, teacher, labels)
    assert tuple(losses.parts) == PARTS
    assert losses.total.dtype == dtype
    for name in PARTS:
        assert float(losses.parts[name]) == pytest.approx(expected[name], rel=tolerance, abs=1e-12), name
    total = 25 * expected["distance"] + 50 * expected["angle"]
    assert float(losses.total) == pytest.approx(total, rel=tolerance, abs=1e-12)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("num_images", [2, 3, 5])
def test_gradients_equal_the_reference(part: str, num_images: int) -> None:
    student, teacher, labels = batch(num_images=num_images)
    expected = numeric_gradient(lambda point: reference.rkd(point, teacher.tolist())[part], student.tolist())
    gradient = gradient_of(RelationalKD(), part, student, teacher, labels)
    torch.testing.assert_close(gradient.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_the_case_reaches_both_branches_of_the_huber_loss() -> None:
    student, teacher, _ = (tensor.tolist() for tensor in batch(num_images=7))
    s, t = ([reference.unit(row) for row in rows] for rows in (student, teacher))
    gaps = [
        abs(reference.angle(s[i], s[j], s[k]) - reference.angle(t[i], t[j], t[k]))
        for i, j, k in itertools.permutations(range(7), 3)
    ]
    assert min(gaps) < 1 < max(gaps)


@pytest.mark.parametrize("part", ["total", *PARTS])
def test_gradcheck(part: str) -> None:
    student, teacher, labels = batch(torch.float64)

    def value(given: Tensor) -> Tensor:
        losses = RelationalKD()(given, teacher, labels)
        return losses.total if part == "total" else losses.parts[part]

    assert torch.autograd.gradcheck(value, (student.requires_grad_(),))


@pytest.mark.parametrize("num_images", [1, 2])
def test_one_image_has_no_relations_and_two_have_no_angles(num_images: int) -> None:
    given = batch(num_images=num_images)
    losses = RelationalKD()(*given)
    assert [float(losses.parts[name]) for name in PARTS] == [0, 0]  # two images: both distances are the mean
    gradient = gradient_of(RelationalKD(), "total", *given)
    assert gradient.isfinite().all()
    assert float(gradient.abs().max()) == pytest.approx(0, abs=1e-9)
    assert all(value.isfinite() for value in losses.stats.values())


@pytest.mark.parametrize(
    "equal",
    [
        {"student": (0, 1)},
        {"teacher": (0, 1)},
        {"student": (0, 1), "teacher": (0, 1)},
        {"student": (0, 1, 2, 3, 4)},
        {"teacher": (0, 1, 2, 3, 4)},
        {"student": (0, 1, 2, 3, 4), "teacher": (0, 1, 2, 3, 4)},
    ],
    ids=str,
)
def test_equal_embeddings_have_distance_0_and_finite_gradients(equal: dict[str, tuple[int, ...]]) -> None:
    student, teacher, labels = batch()
    for name, embeddings in (("student", student), ("teacher", teacher)):
        for index in equal.get(name, ()):
            embeddings[index] = embeddings[0]
    expected = reference.rkd(student.tolist(), teacher.tolist())
    losses = RelationalKD()(student, teacher, labels)
    for name in PARTS:
        assert float(losses.parts[name]) == pytest.approx(expected[name], rel=1e-5, abs=1e-12), name
        assert gradient_of(RelationalKD(), name, student, teacher, labels).isfinite().all()


def test_a_pair_that_rounding_alone_sets_apart_counts_as_one_point() -> None:
    student, teacher, labels = batch()
    student[1] = 3.3 * student[0]
    assert rkd.pair_distances(student)[0, 1] == 0
    assert gradient_of(RelationalKD(), "total", student, teacher, labels).abs().max() < 1e3


def test_distances_are_symmetric_and_no_gradient_joins_equal_embeddings() -> None:
    student = batch(torch.float64)[0]
    student[1] = student[0]
    student.requires_grad_()
    distances = rkd.pair_distances(student)
    assert torch.equal(distances, distances.T)
    assert (distances.diagonal() == 0).all()
    (gradient,) = torch.autograd.grad(distances[0, 1], student)
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_student_equal_to_the_teacher_has_no_loss_and_no_gradient(dtype: torch.dtype) -> None:
    student, _, labels = batch(dtype)
    losses = RelationalKD()(student, student.clone(), labels)
    assert [float(value) for value in (losses.total, *losses.parts.values())] == [0, 0, 0]
    assert (gradient_of(RelationalKD(), "total", student, student.clone(), labels) == 0).all()


def test_turning_and_stretching_all_embeddings_changes_nothing() -> None:
    student, teacher, labels = batch(torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    expected = RelationalKD()(student, teacher, labels).parts
    torch.testing.assert_close(RelationalKD()(7 * student @ turn, teacher / 9, labels).parts, expected)


def test_permuting_the_batch_permutes_the_gradient() -> None:
    student, teacher, labels = batch()
    order = torch.tensor([4, 2, 0, 3, 1])
    moved = (student[order], teacher[order], labels[order])
    torch.testing.assert_close(RelationalKD()(*moved).parts, RelationalKD()(student, teacher, labels).parts)
    gradient = gradient_of(RelationalKD(), "total", student, teacher, labels)
    torch.testing.assert_close(gradient_of(RelationalKD(), "total", *moved), gradient[order])


@pytest.mark.parametrize("triplets", [1, 50, 10_000])
def test_the_size_of_chunks_changes_nothing(triplets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = batch(num_images=7)
    expected, gradient = RelationalKD()(*given), gradient_of(RelationalKD(), "total", *given)
    monkeypatch.setattr(rkd, "_CHUNK_TRIPLETS", triplets)
    torch.testing.assert_close(RelationalKD()(*given).parts, expected.parts)
    torch.testing.assert_close(gradient_of(RelationalKD(), "total", *given), gradient)


def test_a_batch_of_128_keeps_matrices_only_and_makes_nothing_larger_than_its_triplets() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(128, 512).requires_grad_(), torch.randn(128, 512)
    kept: list[int] = []
    largest = Largest()
    with largest, torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        total = RelationalKD()(student, teacher, torch.arange(128)).total
    with largest:
        total.backward()
    assert max(kept) <= 128 * 512
    assert largest.numel == 128**3
    assert student.grad is not None
    assert student.grad.isfinite().all()


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_and_zero_embeddings_are_finite(dtype: torch.dtype) -> None:
    student, teacher, labels = batch(dtype)
    student[0], student[1], student[2], teacher[3] = 0, 6e4, 6e-5, 0
    losses = RelationalKD()(student, teacher, labels)
    assert all(value.isfinite() for value in (losses.total, *losses.parts.values(), *losses.stats.values()))
    assert losses.total.dtype == torch.float32
    gradient = gradient_of(RelationalKD(), "total", student, teacher, labels)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_inputs_stay_and_the_teacher_gets_no_gradient() -> None:
    student, teacher, labels = (tensor.clone() for tensor in batch())
    student.requires_grad_()
    teacher.requires_grad_()
    before = [tensor.detach().clone() for tensor in (student, teacher, labels)]
    losses = RelationalKD()(student, teacher, labels)
    losses.total.backward()
    assert teacher.grad is None
    assert all(torch.equal(a.detach(), b) for a, b in zip((student, teacher, labels), before, strict=True))
    assert not any(value.requires_grad for value in losses.stats.values())


def test_it_runs_without_gradients_and_under_autocast() -> None:
    given = batch()
    expected = RelationalKD()(*given).total
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(RelationalKD()(*given).total, expected)


def test_stats_are_the_mean_distances() -> None:
    student, teacher, labels = batch(torch.float64)
    stats = RelationalKD()(student, teacher, labels).stats
    for name, rows in (("student_mean_distance", student), ("teacher_mean_distance", teacher)):
        units = [reference.unit(row) for row in rows.tolist()]
        lengths = [reference.length(reference.difference(a, b)) for a, b in itertools.combinations(units, 2)]
        assert float(stats[name]) == pytest.approx(sum(lengths) / len(lengths))


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_of_0_leaves_its_part_out(part: str) -> None:
    losses = RelationalKD(**{f"{part}_weight": 0.0})(*batch())
    (other,) = set(PARTS) - {part}
    assert tuple(losses.parts) == (other,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance_weight": -1.0}, "rkd.distance_weight must be a number of at least 0, got -1.0"),
        ({"angle_weight": math.inf}, "rkd.angle_weight .* got inf"),
        ({"distance_weight": 0.0, "angle_weight": 0.0}, "rkd: all weights are 0, so there is nothing to learn"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RelationalKD(**options)


def test_inputs_that_do_not_fit_are_refused() -> None:
    student, teacher, labels = batch()
    with pytest.raises(ConfigError, match=r"embeddings \(5, 4\) and teacher embeddings \(4, 6\) must be .* same N"):
        RelationalKD()(student, teacher[:4], labels)
    with pytest.raises(ConfigError, match="non-empty floating-point"):
        RelationalKD()(student[:0], teacher[:0], labels[:0])
    with pytest.raises(ConfigError, match=r"labels must be int64 of shape \(5,\)"):
        RelationalKD()(student, teacher, labels[:2])


def test_settings_are_shown() -> None:
    assert "distance_weight=1.0, angle_weight=50.0" in repr(RelationalKD(distance_weight=1))
    assert RelationalKD().needs == {"embeddings"}
