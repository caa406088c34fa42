"""Grouped and Decoupled Knowledge Distillation written as loops in float64 from their papers' formulas.

Rows are samples, columns are classes. Gradients come from central differences of these values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Matrix = list[list[float]]
Groups = list[set[int]]


def softmax(row: list[float], temperature: float) -> list[float]:
    best = max(row)
    powers = [math.exp((value - best) / temperature) for value in row]
    return [power / math.fsum(powers) for power in powers]


def primary_of(row: list[float], label: int, k: int) -> set[int]:
    """The target and the k - 1 best other classes, the lower index first among equals."""
    others = sorted((j for j in range(len(row)) if j != label), key=lambda j: (-row[j], j))
    return {label, *others[: k - 1]}


def top_k(ranked: Matrix, labels: list[int], k: int) -> Groups:
    return [primary_of(row, label, k) for row, label in zip(ranked, labels, strict=True)]


def smallest_k(masses: list[float], due: float, k_step: int) -> int:
    """The smallest of 1, 1 + k_step, … whose best masses sum to `due`; all where none does."""
    ordered = sorted(masses, reverse=True)
    for k in range(1, len(ordered) + 1, k_step):
        if math.fsum(ordered[:k]) >= due:
            return k
    return len(ordered)


def cumulative_mass(
    ranked: Matrix, labels: list[int], threshold: float, temperature: float, scope: str, k_step: int
) -> Groups:
    probabilities = [softmax(row, temperature) for row in ranked]
    if scope == "sample":
        ks = [smallest_k(row, threshold, k_step) for row in probabilities]
    else:
        class_mass = [math.fsum(column) for column in zip(*probabilities, strict=True)]
        ks = [smallest_k(class_mass, threshold * len(ranked), k_step)] * len(ranked)
    return [primary_of(row, label, k) for row, label, k in zip(ranked, labels, ks, strict=True)]


def divergence(teacher: list[float], student: list[float]) -> float:
    """Σ t log(t / s), with 0 log 0 = 0."""
    return math.fsum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True) if t > 0)


def sample_terms(student: list[float], teacher: list[float], primary: set[int], temperature: float) -> dict[str, float]:
    """Binary, primary and secondary of one sample, the masses, and the full KL; none of them with T²."""
    p_student, p_teacher = softmax(student, temperature), softmax(teacher, temperature)
    secondary = [j for j in range(len(student)) if j not in primary]
    mass_student, mass_teacher, inside = [], [], []
    for group in (sorted(primary), secondary):
        b_student, b_teacher = math.fsum(p_student[j] for j in group), math.fsum(p_teacher[j] for j in group)
        mass_student.append(b_student)
        mass_teacher.append(b_teacher)
        inside.append(divergence([p_teacher[j] / b_teacher for j in group], [p_student[j] / b_student for j in group]))
    return {
        "binary": divergence(mass_teacher, mass_student) if secondary else 0.0,
        "primary": inside[0],
        "secondary": inside[1],
        "student_primary_mass": mass_student[0],
        "teacher_primary_mass": mass_teacher[0],
        "full": divergence(p_teacher, p_student),
    }


def grouped_kd(student: Matrix, teacher: Matrix, groups: Groups, temperature: float) -> dict[str, float]:
    """Means over the batch: the three terms with T², the masses without."""
    rows = [sample_terms(s, t, group, temperature) for s, t, group in zip(student, teacher, groups, strict=True)]
    means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return {name: mean * (1 if "mass" in name else temperature**2) for name, mean in means.items()}


def decoupled_kd(student: Matrix, teacher: Matrix, labels: list[int], temperature: float) -> tuple[float, float]:
    """(target-class term, non-target term) of Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, with T²."""
    target_term = other_term = 0.0
    for s, t, label in zip(student, teacher, labels, strict=True):
        p_student, p_teacher = softmax(s, temperature)[label], softmax(t, temperature)[label]
        target_term += divergence([p_teacher, 1 - p_teacher], [p_student, 1 - p_student])
        others_student = softmax([value for j, value in enumerate(s) if j != label], temperature)
        others_teacher = softmax([value for j, value in enumerate(t) if j != label], temperature)
        other_term += divergence(others_teacher, others_student)
    return target_term * temperature**2 / len(student), other_term * temperature**2 / len(student)


def gradient(loss: Callable[[Matrix], float], point: Matrix, step: float = 1e-4) -> Matrix:
    """d loss / d point by central differences of fourth order."""

    def at(i: int, j: int, shift: float) -> float:
        moved = [list(row) for row in point]
        moved[i][j] += shift
        return loss(moved)

    def derivative(i: int, j: int) -> float:
        near = at(i, j, step) - at(i, j, -step)
        far = at(i, j, 2 * step) - at(i, j, -2 * step)
        return (8 * near - far) / (12 * step)

    return [[derivative(i, j) for j in range(len(point[i]))] for i in range(len(point))]
