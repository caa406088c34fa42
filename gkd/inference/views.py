"""The two views of an image, itself and its mirror image, and how their embeddings become one.

Shapes: N images, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.evaluation.fusion import FUSIONS, fuse

Rows = npt.NDArray[np.float32]
View = Literal["image", "mirror"]
VIEWS: tuple[View, ...] = ("image", "mirror")
_FUSED_ROWS = 4096
_MAX_NAMED = 8


def needed_views(flip: bool | str) -> tuple[View, ...]:
    """The views that a fusion is made of.

    Raises:
        ConfigError: an unknown fusion.
    """
    return VIEWS[:1] if _fusion(flip) == "none" else VIEWS


def fuse_views(
    views: Mapping[View, Rows], flip: bool | str, describe: Callable[[int], str] = "image {}".format
) -> Rows:
    """One embedding (N, D) from those of each image and of its mirror image.

    Args:
        views: what `needed_views` names, each (N, D).
        flip, describe: as in `embed_images`.

    Raises:
        ConfigError: an unknown fusion.
        DataError: an embedding is zero, where the fusion is one of unit vectors: the images are named.
    """
    how, original = _fusion(flip), views["image"]
    if how == "none":
        return original
    mirrored = views["mirror"]
    if how != "sum":
        is_zero = np.asarray(~(original.any(axis=1) & mirrored.any(axis=1)))
        _require_none(is_zero, "an embedding of zero, which has no direction", describe)
    fused = np.empty_like(original)
    for start in range(0, len(fused), _FUSED_ROWS):  # fused in float64: by block, so that memory stays small
        block = slice(start, start + _FUSED_ROWS)
        fused[block] = fuse(original[block], mirrored[block], how)
    return fused


def require_finite(views: Mapping[View, Rows], describe: Callable[[int], str]) -> None:
    """Refuse NaN and infinite embeddings; `describe` names an image.

    Raises:
        DataError: the number of images that have one, and the first of them.
    """
    is_unfit = np.asarray(np.any([~np.isfinite(rows).all(axis=1) for rows in views.values()], axis=0))
    _require_none(is_unfit, "an embedding that is NaN or infinite", describe)


def _require_none(is_unfit: npt.NDArray[np.bool_], what: str, describe: Callable[[int], str]) -> None:
    unfit = np.flatnonzero(is_unfit)
    if len(unfit) == 0:
        return
    named = "; ".join(describe(int(index)) for index in unfit[:_MAX_NAMED])
    more = "; …" if len(unfit) > _MAX_NAMED else ""
    raise DataError(
        f"{len(unfit)} of {len(is_unfit)} images have {what}: {named}{more}; "
        "the network or its input conversion is at fault"
    )


def _fusion(flip: bool | str) -> str:
    how = flip if isinstance(flip, str) else ("sum" if flip else "none")
    if how not in FUSIONS:
        raise ConfigError(f"unknown flip fusion `{how}`; choose one of {', '.join(FUSIONS)}")
    return how
