"""Margins written as loops in float64 from their papers' formulas. N images, C classes."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def arcface_target(cosine: float, margin: float) -> float:
    """cos(θ + m), and cosθ - m·sin m where θ + m passes π."""
    theta = math.acos(max(-1.0, min(1.0, cosine)))
    if theta + margin > math.pi:
        return cosine - margin * math.sin(margin)
    return math.cos(theta + margin)


def arcface_slope(cosine: float, margin: float, straight_through: bool) -> float:
    """d/dcosθ of `arcface_target`, with sinθ of at least 1e-4."""
    theta = math.acos(max(-1.0, min(1.0, cosine)))
    if straight_through or theta + margin > math.pi:
        return 1.0
    sine = max(math.sin(theta), 1e-4)
    return (sine * math.cos(margin) + cosine * math.sin(margin)) / sine


def cosface_target(cosine: float, margin: float) -> float:
    """cosθ - m; its derivative is 1."""
    return cosine - margin


def target(name: str, cosine: float, margin: float) -> float:
    """The target entry of the margin that a table calls `name`, before the scale."""
    return {"arcface": arcface_target, "cosface": cosface_target}[name](cosine, margin)


def slope(name: str, cosine: float, margin: float, straight_through: bool = False) -> float:
    """Its derivative with respect to the cosine."""
    return arcface_slope(cosine, margin, straight_through) if name == "arcface" else 1.0


def logits(name: str, cosine: Matrix, labels: list[int], margin: float, scale: float) -> Matrix:
    """The whole (N, C) output."""
    return [
        [scale * (target(name, value, margin) if j == label else value) for j, value in enumerate(row)]
        for row, label in zip(cosine, labels, strict=True)
    ]
