"""Embedding distillation written as loops in float64: distances of normalised embeddings, image by image."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(math.fsum(value * value for value in vector))
    return [value / norm for value in vector]


def project(vectors: Matrix, weights: Matrix) -> Matrix:
    """Each vector times a matrix of (rows out, columns in)."""
    return [[math.fsum(w * v for w, v in zip(row, vector, strict=True)) for row in weights] for vector in vectors]


def cosine_distance(student: Matrix, teacher: Matrix) -> float:
    """Mean of 1 - cos."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += 1 - math.fsum(a * b for a, b in zip(unit(s), unit(t), strict=True))
    return total / len(student)


def l2_distance(student: Matrix, teacher: Matrix) -> float:
    """Mean of the squared distance of the unit vectors."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total += math.fsum((a - b) ** 2 for a, b in zip(unit(s), unit(t), strict=True))
    return total / len(student)
