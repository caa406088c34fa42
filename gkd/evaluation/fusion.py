"""One embedding from those of an image and of its mirror image.

Shapes: N images, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError

Embeddings = npt.NDArray[np.float64]


def fuse(original: npt.NDArray[Any], mirrored: npt.NDArray[Any], how: str = "sum") -> Embeddings:
    """The embedding to compare by, in float64; its length is free, since comparing normalises.

    With raw embeddings a and b of an image and its mirror image:

    - `sum`: a + b, the protocol's. The longer of the two counts more.
    - `none`: a alone.
    - `unit_sum`: a/|a| + b/|b|. Both count the same.
    - `norm_weighted`: (|a| · a/|a| + |b| · b/|b|) / (|a| + |b|) = (a + b) / (|a| + |b|): the mean of the unit vectors
      weighted by the lengths. Its direction, and so every figure, is that of `sum`; its length, at most 1, says how far
      the two agree.

    Source: `sum`, the public insightface evaluation. AdaFace's network returns unit vectors and lengths apart; its
    validation multiplies them and adds up (`fuse_features_with_norm`, called `pre_norm_vector_add` in its low-quality
    evaluation), which is `sum`; `norm_weighted_avg` there is `norm_weighted`, and `average` is `unit_sum`, but for the
    lengths of the results. CVLface adds raw vectors.

    Args:
        original: (N, D) raw embeddings of the images.
        mirrored: (N, D) raw embeddings of the mirror images, in the same order.
        how: one of the above.

    Returns:
        (N, D); the inputs stay as they are.

    Raises:
        ConfigError: `how` is none of the above.
        DataError: the shapes do not fit, or an embedding that must be normalised is NaN, infinite or zero.
    """
    if how not in FUSIONS:
        raise ConfigError(f"unknown flip fusion `{how}`; choose one of {', '.join(FUSIONS)}")
    first, second = np.asarray(original), np.asarray(mirrored)
    if first.ndim != 2 or first.shape != second.shape:
        raise DataError(
            f"embeddings of images and mirror images must be two (N, D) arrays of one shape, got {first.shape}, "
            f"{second.shape}"
        )
    return FUSIONS[how](first.astype(np.float64), second.astype(np.float64))


def _sum(original: Embeddings, mirrored: Embeddings) -> Embeddings:
    return original + mirrored


def _first(original: Embeddings, mirrored: Embeddings) -> Embeddings:
    return original


def _unit_sum(original: Embeddings, mirrored: Embeddings) -> Embeddings:
    return original / _lengths(original, "an image") + mirrored / _lengths(mirrored, "a mirror image")


def _norm_weighted(original: Embeddings, mirrored: Embeddings) -> Embeddings:
    return (original + mirrored) / (_lengths(original, "an image") + _lengths(mirrored, "a mirror image"))


def _lengths(rows: Embeddings, of_what: str) -> Embeddings:
    """The lengths (N, 1) of the rows, where each has a direction."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.square(rows).sum(axis=1))
    unfit = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(unfit):
        raise DataError(
            f"{len(unfit)} of {len(rows)} embeddings of {of_what} are NaN, infinite or zero, the first that of image "
            f"{unfit[0]}; the network or its input conversion is at fault"
        )
    column: Embeddings = lengths[:, None]
    return column


FUSIONS: dict[str, Callable[[Embeddings, Embeddings], Embeddings]] = {
    "sum": _sum,
    "none": _first,
    "unit_sum": _unit_sum,
    "norm_weighted": _norm_weighted,
}
