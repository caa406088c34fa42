"""Relational Knowledge Distillation written as loops in float64 from Park et al., CVPR 2019, arXiv 1904.05068.

Sums over pairs and triplets of distinct images are means here, and embeddings are normalised.
"""

from __future__ import annotations

import itertools
import math

from tests.reference.embedding import unit

Matrix = list[list[float]]


def huber(x: float, y: float) -> float:
    """l_δ with δ = 1: half the square up to a difference of 1, linear beyond."""
    gap = abs(x - y)
    return 0.5 * gap**2 if gap <= 1 else gap - 0.5


def length(vector: list[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in vector))


def difference(a: list[float], b: list[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def relative_distances(vectors: Matrix) -> dict[tuple[int, int], float]:
    """ψ_D of each ordered pair: its distance over the mean distance μ of all pairs."""
    pairs = list(itertools.permutations(range(len(vectors)), 2))
    distances = {(i, j): length(difference(vectors[i], vectors[j])) for i, j in pairs}
    mean = math.fsum(distances.values()) / len(pairs)
    return {pair: distance / mean if mean else 0.0 for pair, distance in distances.items()}


def angle(i: list[float], j: list[float], k: list[float]) -> float:
    """ψ_A = <e_ij, e_kj>, the cosine at j; 0 where a side has no length."""
    left, right = difference(i, j), difference(k, j)
    if length(left) == 0 or length(right) == 0:
        return 0.0
    return math.fsum(a * b for a, b in zip(unit(left), unit(right), strict=True))


def distance_term(student: Matrix, teacher: Matrix) -> float:
    if len(student) < 2:
        return 0.0
    s = relative_distances([unit(vector) for vector in student])
    t = relative_distances([unit(vector) for vector in teacher])
    return math.fsum(huber(s[pair], t[pair]) for pair in s) / len(s)


def angle_term(student: Matrix, teacher: Matrix) -> float:
    s, t = [unit(vector) for vector in student], [unit(vector) for vector in teacher]
    triplets = list(itertools.permutations(range(len(s)), 3))
    terms = [huber(angle(s[i], s[j], s[k]), angle(t[i], t[j], t[k])) for i, j, k in triplets]
    return math.fsum(terms) / len(terms) if terms else 0.0


def rkd(student: Matrix, teacher: Matrix) -> dict[str, float]:
    return {"distance": distance_term(student, teacher), "angle": angle_term(student, teacher)}
