"""Distances between pairs of embeddings.

Shapes: P pairs, D embedding dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError

_BLOCK_PAIRS = 4096
_MAX_NAMED = 8


def squared_distances(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Squared Euclidean distance of the normalised rows, in float64 from differences: (P, D), (P, D) -> (P,).

    2 - 2cos would lose the small distances to cancellation. Works in blocks, so memory stays small.

    Raises:
        DataError: the shapes do not fit, or an embedding is NaN, infinite or zero: the pairs and the images are named.
    """
    left, right = np.asarray(left), np.asarray(right)
    if left.ndim != 2 or left.shape != right.shape:
        raise DataError(f"embeddings of pairs must be two (P, D) arrays of one shape, got {left.shape}, {right.shape}")
    distances = np.empty(len(left), dtype=np.float64)
    is_unfit = np.zeros((len(left), 2), dtype=np.bool_)
    for start in range(0, len(left), _BLOCK_PAIRS):
        block = slice(start, start + _BLOCK_PAIRS)
        unit_left, is_left_fit = _normalise(left[block])
        unit_right, is_right_fit = _normalise(right[block])
        distances[block] = np.square(unit_left - unit_right).sum(axis=1)
        is_unfit[block] = ~np.stack((is_left_fit, is_right_fit), axis=1)
    _check_fit(is_unfit)
    return distances


def _normalise(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    rows = rows.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.square(rows).sum(axis=1))
    is_fit = np.isfinite(norms) & (norms > 0)
    rows[~is_fit] = 0.0  # reported by the caller, kept out of the arithmetic
    return rows / np.where(is_fit, norms, 1.0)[:, None], is_fit


def _check_fit(is_unfit: npt.NDArray[np.bool_]) -> None:
    """Refuse unfit embeddings (P, 2); a set of pairs holds pair i as images 2i and 2i + 1."""
    unfit_pairs = np.flatnonzero(is_unfit.any(axis=1))
    if len(unfit_pairs) == 0:
        return
    raise DataError(
        f"{len(unfit_pairs)} of {len(is_unfit)} pairs have an embedding that is NaN, infinite or zero: "
        f"pairs {_named(unfit_pairs)}; images {_named(np.flatnonzero(is_unfit))} (pair i is images 2i and 2i + 1); "
        "the network or its input conversion is at fault"
    )


def _named(indices: npt.NDArray[np.intp]) -> str:
    more = ", …" if len(indices) > _MAX_NAMED else ""
    return ", ".join(str(index) for index in indices[:_MAX_NAMED]) + more
