"""Whether one network separates pairs better than another on the same pairs: the gap of their d' and its interval.

d' = (mean of same - mean of different) / sqrt((variance of same + variance of different) / 2), over cosines.

Shapes: P pairs, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError

_BLOCK_ELEMENTS = 1 << 20
_ROUNDING = 1e-12  # equal cosines have a variance of about 1e-32 and no d'

Cosines = npt.NDArray[np.float64]


def d_prime(cosines: npt.NDArray[Any], is_same: npt.NDArray[np.bool_]) -> float:
    """d' of the cosines (P,) of pairs.

    Raises:
        DataError: the shapes do not fit, a class has no pair, or all cosines of both classes are equal.
    """
    cosines, is_same = _checked(cosines, is_same)
    return float(_from_moments(_moments(cosines[None, is_same]), _moments(cosines[None, ~is_same]))[0])


def paired_d_prime_gap(
    cosines_a: npt.NDArray[Any],
    cosines_b: npt.NDArray[Any],
    is_same: npt.NDArray[np.bool_],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """d' of A minus d' of B on the same pairs, with a percentile bootstrap interval.

    Pairs are drawn with replacement, same and different ones apart and the same ones for A and B, so that what makes a
    pair hard for both does not widen the interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, the percentile interval.

    Args:
        cosines_a: (P,) cosine similarities of one network's embeddings.
        cosines_b: (P,) of the other's, of the same pairs in the same order.
        is_same: (P,) bool.
        num_resamples: R.
        seed: start of the resampling.
        confidence: share of the resampled gaps inside the interval; below 1.

    Returns:
        The gap, and the low and the high end of its interval.

    Raises:
        DataError: the shapes do not fit, a class has no pair, cosines are all equal, or a setting is out of its range.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise DataError(f"need a resample and a confidence between 0 and 1, got {num_resamples} and {confidence}")
    a, labels = _checked(cosines_a, is_same)
    b, _ = _checked(cosines_b, is_same)
    gap = d_prime(a, labels) - d_prime(b, labels)
    generator = np.random.default_rng(seed)
    same, different = np.stack([a[labels], b[labels]]), np.stack([a[~labels], b[~labels]])
    gaps = np.concatenate([_gaps(same, different, count, generator) for count in _blocks(num_resamples, len(labels))])
    low, high = np.quantile(gaps, [(1 - confidence) / 2, (1 + confidence) / 2])
    return gap, float(low), float(high)


def _checked(cosines: npt.NDArray[Any], is_same: npt.NDArray[Any]) -> tuple[Cosines, npt.NDArray[np.bool_]]:
    values, labels = np.asarray(cosines, dtype=np.float64), np.asarray(is_same, dtype=np.bool_)
    if values.ndim != 1 or values.shape != labels.shape:
        raise DataError(f"cosines {values.shape} and is_same {labels.shape} must be two vectors of one length")
    if not np.isfinite(values).all():
        raise DataError(f"{int((~np.isfinite(values)).sum())} of {len(values)} cosines are NaN or infinite")
    if labels.all() or not labels.any():
        raise DataError(f"{int(labels.sum())} same of {len(labels)} pairs: d' needs same and different pairs")
    return values, labels


def _blocks(num_resamples: int, num_pairs: int) -> Iterator[int]:
    """Numbers of resamples that together keep the memory small."""
    size = max(1, _BLOCK_ELEMENTS // num_pairs)
    for start in range(0, num_resamples, size):
        yield min(size, num_resamples - start)


def _gaps(same: Cosines, different: Cosines, count: int, generator: np.random.Generator) -> Cosines:
    """Gaps (count,) of resamples; `same` and `different` are (2, pairs of the class), A in row 0."""
    drawn_same = generator.integers(0, same.shape[1], (count, same.shape[1]))
    drawn_different = generator.integers(0, different.shape[1], (count, different.shape[1]))
    a, b = (_from_moments(_moments(same[row][drawn_same]), _moments(different[row][drawn_different])) for row in (0, 1))
    return a - b


def _moments(cosines: Cosines) -> tuple[Cosines, Cosines]:
    return cosines.mean(axis=1), cosines.var(axis=1)


def _from_moments(same: tuple[Cosines, Cosines], different: tuple[Cosines, Cosines]) -> Cosines:
    spread = np.sqrt((same[1] + different[1]) / 2)
    if (spread <= _ROUNDING).any():
        raise DataError("all cosines of a class are equal, so d' cannot be measured; give more pairs")
    result: Cosines = (same[0] - different[0]) / spread
    return result
