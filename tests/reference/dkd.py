"""Decoupled Knowledge Distillation written as loops in float64 from Zhao et al., CVPR 2022, arXiv 2203.08679."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def target_and_others(row: list[float], label: int, temperature: float) -> tuple[float, float, list[float]]:
    """p_t, p_\\t and p̂: the target's probability, that of all others, and the others' among themselves."""
    powers = [math.exp(value / temperature) for value in row]
    others = [power for j, power in enumerate(powers) if j != label]
    return (
        powers[label] / math.fsum(powers),
        math.fsum(others) / math.fsum(powers),
        [power / math.fsum(others) for power in others],
    )


def dkd(student: Matrix, teacher: Matrix, labels: list[int], temperature: float) -> dict[str, float]:
    """TCKD and NCKD as means over samples, with T² in front."""
    target = non_target = 0.0
    for student_row, teacher_row, label in zip(student, teacher, labels, strict=True):
        q_target, q_rest, q_others = target_and_others(student_row, label, temperature)
        p_target, p_rest, p_others = target_and_others(teacher_row, label, temperature)
        target += p_target * math.log(p_target / q_target) + p_rest * math.log(p_rest / q_rest)
        non_target += math.fsum(p * math.log(p / q) for p, q in zip(p_others, q_others, strict=True))
    factor = temperature**2 / len(student)
    return {"target": factor * target, "non_target": factor * non_target}
