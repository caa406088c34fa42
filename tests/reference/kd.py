"""Knowledge Distillation written as loops in float64 from Hinton, Vinyals, Dean, 2015, arXiv 1503.02531."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def softened(row: list[float], temperature: float) -> list[float]:
    """q_i = exp(z_i / T) / Σ_j exp(z_j / T), the paper's equation 1."""
    best = max(row)
    powers = [math.exp((value - best) / temperature) for value in row]
    return [power / math.fsum(powers) for power in powers]


def kd(student: Matrix, teacher: Matrix, temperature: float) -> float:
    """T² times the mean over samples of Σ_j p_j (log p_j - log q_j), p the teacher's and q the student's."""
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        q, p = softened(student_row, temperature), softened(teacher_row, temperature)
        for p_j, q_j in zip(p, q, strict=True):
            if p_j > 0:
                total += p_j * (math.log(p_j) - math.log(q_j))
    return temperature**2 * total / len(student)


def kd_gradient(student: Matrix, teacher: Matrix, temperature: float) -> Matrix:
    """d kd / d z = T²/N · (q - p) / T, the paper's equation 2 times T²."""
    gradient = []
    for student_row, teacher_row in zip(student, teacher, strict=True):
        q, p = softened(student_row, temperature), softened(teacher_row, temperature)
        gradient.append([temperature * (q_j - p_j) / len(student) for q_j, p_j in zip(q, p, strict=True)])
    return gradient
