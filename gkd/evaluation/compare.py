"""Whether one method verifies faces better than another: the gap of their accuracies and its interval.

Shapes: R runs (seeds) of each method, P pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError

_BLOCK_ELEMENTS = 1 << 22


class Gap(NamedTuple):
    """How much more often A is right than B, as a fraction, and the two-sided interval of it."""

    gap: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval excludes zero, else `no difference seen`."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference seen"


def paired_gap(
    correct_a: npt.NDArray[Any],
    correct_b: npt.NDArray[Any],
    *,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Gap:
    """The mean over runs and pairs of `correct_a - correct_b`, with a percentile bootstrap interval over the pairs.

    Pairs are drawn with replacement, the same ones for all runs of both methods, so what a pair has in common to all
    of them (an easy pair is easy for everyone) does not widen the interval. Each pair keeps the verdict of its fold's
    threshold: thresholds are not chosen anew in a resample.

    The interval covers which pairs happen to be in the set. It does not cover which identities are (pairs that share
    a person are taken for independent, so it is a little narrow), nor which seeds were run: the R runs are taken as
    they are.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, the percentile interval.

    Args:
        correct_a: (R, P) bool, or (P,) for one run; see `judge_pairs`.
        correct_b: (R', P) bool of the other method on the same pairs in the same order; R' may be another number.
        num_resamples: number of bootstrap samples.
        confidence: share of the resampled gaps inside the interval.
        seed: start of the resampling.

    Raises:
        DataError: the shapes do not fit, or there is nothing to compare.
    """
    right_a, right_b = np.atleast_2d(correct_a).astype(np.float64), np.atleast_2d(correct_b).astype(np.float64)
    if right_a.ndim != 2 or right_b.ndim != 2 or right_a.shape[1] != right_b.shape[1] or 0 in right_a.shape:
        raise DataError(f"the methods must be judged on the same pairs, got {right_a.shape} and {right_b.shape}")
    if 0 in right_b.shape or num_resamples < 1 or not 0 < confidence < 1:
        raise DataError(
            f"need at least one run of each method, one resample and a confidence between 0 and 1, got "
            f"{right_b.shape[0]} run(s), {num_resamples} and {confidence}"
        )
    differences = right_a.mean(axis=0) - right_b.mean(axis=0)
    gaps = _resampled_means(differences, num_resamples, np.random.default_rng(seed))
    low, high = np.quantile(gaps, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Gap(float(differences.mean()), float(low), float(high))


def _resampled_means(
    values: npt.NDArray[np.float64], num_resamples: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Means of resamples of `values`, (num_resamples,).

    How often each distinct value is drawn is multinomial, and differences of means over a few runs have few distinct
    values: equal to drawing pair by pair, at a fraction of the cost. Blocks bound the memory where they have many.
    """
    distinct, counts = np.unique(values, return_counts=True)
    means = []
    block = max(1, _BLOCK_ELEMENTS // len(distinct))
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = generator.multinomial(len(values), counts / len(values), size=size)
        means.append(drawn @ distinct / len(values))
    return np.concatenate(means)
