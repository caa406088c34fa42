"""Verification figures by literal loops in plain Python, one comparison at a time.

Source: the insightface protocol: squared distance, thresholds 0, 0.01 … 3.99, strict <, contiguous
folds, the first best threshold of the other folds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np


def distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Squared Euclidean distance of two vectors after each is given unit length."""
    left_norm = math.sqrt(sum(value * value for value in left))
    right_norm = math.sqrt(sum(value * value for value in right))
    return sum((a / left_norm - b / right_norm) ** 2 for a, b in zip(left, right, strict=True))


def folds_of(num_pairs: int, folds: int) -> list[list[int]]:
    """The pair numbers of each fold: dealt out in order, one more to each of the first `num_pairs mod folds`."""
    remaining = list(range(num_pairs))
    result = []
    for fold in range(folds):
        size = num_pairs // folds + (1 if fold < num_pairs % folds else 0)
        result.append(remaining[:size])
        remaining = remaining[size:]
    return result


def num_right(distances: Sequence[float], is_same: Sequence[bool], pairs: Sequence[int], threshold: float) -> int:
    """How many of `pairs` are judged rightly at one threshold."""
    right = 0
    for pair in pairs:
        is_accepted = distances[pair] < threshold
        if is_accepted == bool(is_same[pair]):
            right += 1
    return right


def best_threshold(distances: Sequence[float], is_same: Sequence[bool], pairs: Sequence[int]) -> float:
    """The first threshold with the most right answers on `pairs`."""
    best, most = math.nan, -1
    for threshold in np.arange(0, 4, 0.01).tolist():
        right = num_right(distances, is_same, pairs, threshold)
        if right > most:
            best, most = threshold, right
    return best


def judge_folds(
    distances: Sequence[float], is_same: Sequence[bool], parts: Sequence[Sequence[int]]
) -> list[tuple[float, float]]:
    """(threshold, accuracy) of each fold at the best threshold of the others; a pair may be in a fold repeatedly."""
    judged = []
    for held_out in parts:
        others = [pair for part in parts if part is not held_out for pair in part]
        threshold = best_threshold(distances, is_same, others)
        judged.append((threshold, num_right(distances, is_same, held_out, threshold) / len(held_out)))
    return judged


def fold_accuracies(distances: Sequence[float], is_same: Sequence[bool], folds: int) -> list[float]:
    """The accuracy of each fold at the best threshold of the others."""
    return [accuracy for _, accuracy in judge_folds(distances, is_same, folds_of(len(distances), folds))]


def fold_thresholds(distances: Sequence[float], is_same: Sequence[bool], folds: int) -> list[float]:
    """The threshold that each fold is judged at."""
    return [threshold for threshold, _ in judge_folds(distances, is_same, folds_of(len(distances), folds))]


def weighted_accuracy(distances: Sequence[float], is_same: Sequence[bool], weights: Sequence[int], folds: int) -> float:
    """The mean fold accuracy where each pair stands in its fold as often as it weighs; empty folds do not count."""
    parts = [[pair for pair in part for _ in range(weights[pair])] for part in folds_of(len(distances), folds)]
    accuracies = [accuracy for _, accuracy in judge_folds(distances, is_same, [part for part in parts if part])]
    return sum(accuracies) / len(accuracies)


def repeated(values: Sequence[float], weights: Sequence[int]) -> list[float]:
    """Each value as often as it weighs."""
    return [value for value, weight in zip(values, weights, strict=True) for _ in range(weight)]


def rates(scores: Sequence[float], is_same: Sequence[bool], threshold: float) -> tuple[float, float]:
    """(FAR, TAR) where pairs with score >= threshold are accepted."""
    same = [score for score, label in zip(scores, is_same, strict=True) if label]
    different = [score for score, label in zip(scores, is_same, strict=True) if not label]
    far = sum(score >= threshold for score in different) / len(different)
    tar = sum(score >= threshold for score in same) / len(same)
    return far, tar


def tar_at_far(scores: Sequence[float], is_same: Sequence[bool], target: float) -> float | None:
    """The best TAR of all observed thresholds (and of accepting nothing) whose FAR is at most the target."""
    if target < 1 / sum(not label for label in is_same):
        return None
    best = 0.0
    for threshold in scores:
        far, tar = rates(scores, is_same, threshold)
        if far <= target:
            best = max(best, tar)
    return best


def operating_point(
    scores: Sequence[float], is_same: Sequence[bool], target: float
) -> tuple[float, float, float] | None:
    """(lowest accepted score, FAR, TAR) of the lowest observed threshold whose FAR is at most the target."""
    if target < 1 / sum(not label for label in is_same):
        return None
    best = (math.inf, 0.0, 0.0)
    for threshold in scores:
        far, tar = rates(scores, is_same, threshold)
        if far <= target and threshold < best[0]:
            best = (threshold, far, tar)
    return best


def area_under_curve(scores: Sequence[float], is_same: Sequence[bool]) -> float:
    """The share of (same, different) couples that are ranked rightly, ties counting one half."""
    same = [score for score, label in zip(scores, is_same, strict=True) if label]
    different = [score for score, label in zip(scores, is_same, strict=True) if not label]
    total = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in same for b in different)
    return total / (len(same) * len(different))


def equal_error_rate(scores: Sequence[float], is_same: Sequence[bool]) -> float:
    """Find the straight piece of the ROC on which FAR passes 1 - TAR, then bisect it."""
    points = [(0.0, 0.0)] + [rates(scores, is_same, threshold) for threshold in sorted(set(scores), reverse=True)]
    for (far_0, tar_0), (far_1, tar_1) in itertools.pairwise(points):
        if far_1 < 1 - tar_1:
            continue
        low, high = 0.0, 1.0
        for _ in range(200):
            middle = (low + high) / 2
            far = far_0 + middle * (far_1 - far_0)
            miss = 1 - (tar_0 + middle * (tar_1 - tar_0))
            low, high = (middle, high) if far < miss else (low, middle)
        return far_0 + high * (far_1 - far_0)
    raise AssertionError("the last point accepts everything")
