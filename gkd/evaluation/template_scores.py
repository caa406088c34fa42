"""Scores of pairs of templates, a template being a set of images and video frames of one person.

The images of a template become one unit vector, pairs of templates are scored by the cosine, and TAR at a FAR is read
from the scores.

Shapes: N images, T templates, P pairs, D embedding dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.evaluation.tar_far import FAR_TARGETS, check_both_classes

_BLOCK_ROWS = 1024
_TILE = 1024
# A product of two tiles costs as much as this share of its entries computed one by one, row gathered by row.
_DENSE_SHARE = 0.02
_GATHERED_PAIRS = 2048
_MAX_NAMED = 8

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.integer[Any]]


class OperatingPoint(NamedTuple):
    """What the loosest observed threshold for a FAR gives; pairs with score >= threshold are accepted.

    `threshold` is +inf where nothing may be accepted.
    """

    tar: float
    threshold: float
    num_false_accepts: int


def pool_templates(
    embeddings: npt.NDArray[Any],
    template_of: Indices,
    media_of: Indices,
    num_templates: int,
    *,
    detector_scores: npt.NDArray[Any] | None = None,
    use_norm_score: bool = True,
) -> Floats:
    """One unit vector for each template.

    With x an image's embedding and s its detector score, t = sum over the medias of a template of the mean over the
    media's images in it of s x, divided by |t|. That is one weighted sum over the images: each has the weight s / (how
    many images of the template share its media). Sums are float64.

    Source: the public insightface evaluation of IJB-B and IJB-C, which keeps the embeddings' length and multiplies by
    the detector score.

    Args:
        embeddings: (N, D), of any length; not changed.
        template_of: (N,), 0 to `num_templates` - 1.
        media_of: (N,), any whole numbers; images of one number in one template are frames of one video.
        detector_scores: (N,), or None to leave them out.
        use_norm_score: whether x keeps its length, which tells how sure the network is; else x / |x| is taken.

    Returns:
        (T, D) float32.

    Raises:
        DataError: the shapes do not fit, an embedding is NaN, infinite or (where it is divided by its length) zero, or
            a template sums up to nothing; with which.
    """
    _check_images(embeddings, template_of, media_of, detector_scores, num_templates)
    lengths = _lengths(embeddings, may_be_zero=use_norm_score)
    order = np.lexsort((media_of, template_of))
    weights = 1.0 / _media_sizes(template_of[order], media_of[order])
    if detector_scores is not None:
        weights *= np.asarray(detector_scores, np.float64)[order]
    if not use_norm_score:
        weights /= lengths[order]
    return _unit_templates(_weighted_sums(embeddings, order, weights, template_of[order], num_templates))


def score_pairs(templates: Floats, left: Indices, right: Indices) -> Floats:
    """The dot product of templates `left[i]` and `right[i]` of every pair, float32 (P,).

    Pairs are sorted into tiles of 1024 x 1024 templates. A tile with many pairs is one matrix product of which the
    pairs' entries are taken; in one with few, their rows are gathered. The order of additions depends on where a pair
    lies among the others, so the last bits may differ between lists.

    Args:
        templates: (T, D) float32; unit rows give cosines.
        left: (P,) integers, 0 to T - 1.
        right: (P,) likewise.

    Raises:
        DataError: the shapes do not fit, or a number is no template's.
    """
    _check_pairs(templates, left, right)
    scores = np.empty(len(left), np.float32)
    rows, columns = _tile_places(left, right, len(templates))
    row_vectors, column_vectors = templates[rows.templates], templates[columns.templates]
    for tile_row, tile_column, pairs in _tiles(rows, columns):
        tops = row_vectors[tile_row * _TILE : (tile_row + 1) * _TILE]
        sides = column_vectors[tile_column * _TILE : (tile_column + 1) * _TILE]
        scores[pairs] = _tile_scores(tops, sides, rows.places[pairs] % _TILE, columns.places[pairs] % _TILE)
    return scores


def operating_points(
    scores: npt.NDArray[Any], is_same: npt.NDArray[np.bool_], targets: Iterable[float] = FAR_TARGETS
) -> dict[float, OperatingPoint | None]:
    """The loosest observed threshold whose FAR is at most each target; None where it cannot be measured.

    The TARs are those of `tar_at_far(roc_curve(scores, is_same), targets)`, without the curve: with k the most false
    accepts that a target allows, what scores above the (k + 1)-th best different pair is accepted.

    Args:
        scores: (P,), higher means more alike; not changed.
        is_same: (P,) bool.
        targets: FARs as fractions.

    Raises:
        DataError: as `roc_curve`.
    """
    if scores.ndim != 1 or scores.shape != is_same.shape:
        raise DataError(f"scores {scores.shape} and is_same {is_same.shape} must be two vectors of one length")
    check_both_classes(is_same)
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are NaN or infinite")
    same, different = scores[is_same], scores[~is_same]
    same.sort()
    different.sort()
    return {target: _operating_point(same, different, target) for target in targets}


def _operating_point(same: npt.NDArray[Any], different: npt.NDArray[Any], target: float) -> OperatingPoint | None:
    """Of scores in ascending order."""
    if target < 1 / len(different):
        return None
    allowed = _most_false_accepts(target, len(different))
    best_refused = different[-1 - allowed] if allowed < len(different) else -np.inf
    first_same = int(np.searchsorted(same, best_refused, side="right"))
    first_different = int(np.searchsorted(different, best_refused, side="right"))
    accepted = (*same[first_same : first_same + 1], *different[first_different : first_different + 1], np.inf)
    return OperatingPoint(
        tar=(len(same) - first_same) / len(same),
        threshold=float(min(accepted)),
        num_false_accepts=len(different) - first_different,
    )


def _most_false_accepts(target: float, num_different: int) -> int:
    """The greatest k of which k / num_different is at most the target, as floating-point numbers compare."""
    most = min(num_different, math.floor(target * num_different) + 1)
    while most / num_different > target:
        most -= 1
    return most


def _check_images(
    embeddings: npt.NDArray[Any],
    template_of: Indices,
    media_of: Indices,
    detector_scores: npt.NDArray[Any] | None,
    num_templates: int,
) -> None:
    vectors = (template_of, media_of) if detector_scores is None else (template_of, media_of, detector_scores)
    if embeddings.ndim != 2 or any(vector.shape != embeddings.shape[:1] for vector in vectors):
        shapes = ", ".join(str(vector.shape) for vector in vectors)
        raise DataError(f"embeddings {embeddings.shape} need a template, a media and a score for each, got {shapes}")
    present = np.zeros(num_templates, np.bool_)
    if len(template_of) and (template_of.min() < 0 or template_of.max() >= num_templates):
        raise DataError(f"template numbers go from {template_of.min()} to {template_of.max()}, of {num_templates}")
    present[template_of] = True
    if not present.all():
        raise DataError(f"{_named(np.flatnonzero(~present), num_templates, 'templates')} have no image")
    if detector_scores is not None and not np.isfinite(detector_scores).all():
        unfit = np.flatnonzero(~np.isfinite(detector_scores))
        raise DataError(f"{_named(unfit, len(detector_scores), 'images')} have a detector score that is not finite")


def _lengths(embeddings: npt.NDArray[Any], may_be_zero: bool) -> npt.NDArray[np.float64]:
    """|x| of each row, where all are fit to be used."""
    lengths = np.empty(len(embeddings))
    for start in range(0, len(embeddings), _BLOCK_ROWS):
        block = embeddings[start : start + _BLOCK_ROWS].astype(np.float64)
        lengths[start : start + _BLOCK_ROWS] = np.sqrt(np.einsum("nd,nd->n", block, block))
    unfit = np.flatnonzero(~np.isfinite(lengths) | ((lengths == 0) & (not may_be_zero)))
    if len(unfit):
        raise DataError(
            f"{_named(unfit, len(embeddings), 'images')} have an embedding that is NaN, infinite or zero; the network "
            "or its input conversion is at fault"
        )
    return lengths


def _media_sizes(templates: Indices, medias: Indices) -> npt.NDArray[np.float64]:
    """How many images share each one's media and template, from sorted ones."""
    starts = np.flatnonzero(_is_first(templates) | _is_first(medias))
    sizes = np.diff(np.append(starts, len(templates)))
    return np.repeat(sizes, sizes).astype(np.float64)


def _is_first(values: Indices) -> npt.NDArray[np.bool_]:
    return np.concatenate((np.ones(min(1, len(values)), np.bool_), values[1:] != values[:-1]))


def _weighted_sums(
    embeddings: npt.NDArray[Any],
    order: npt.NDArray[np.intp],
    weights: npt.NDArray[np.float64],
    templates: Indices,
    num_templates: int,
) -> npt.NDArray[np.float64]:
    """Sums (T, D) of weight times embedding; rows come in `order`, in which `templates` ascends."""
    sums = np.zeros((num_templates, embeddings.shape[1]))
    for start in range(0, len(order), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        rows = embeddings[order[block]].astype(np.float64)
        rows *= weights[block, None]
        firsts = np.flatnonzero(_is_first(templates[block]))
        sums[templates[block][firsts]] += np.add.reduceat(rows, firsts, axis=0)
    return sums


def _unit_templates(sums: npt.NDArray[np.float64]) -> Floats:
    with np.errstate(over="ignore"):
        lengths = np.sqrt(np.einsum("td,td->t", sums, sums))
    unfit = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(unfit):
        raise DataError(
            f"{_named(unfit, len(sums), 'templates')} sum up to nothing, or to more than numbers can hold, so they "
            "have no direction"
        )
    units: Floats = (sums / lengths[:, None]).astype(np.float32)
    return units


def _named(places: npt.NDArray[np.intp], total: int, what: str) -> str:
    shown = ", ".join(str(place) for place in places[:_MAX_NAMED])
    return f"{len(places)} of {total} {what} ({shown}{', …' if len(places) > _MAX_NAMED else ''})"


def _check_pairs(templates: Floats, left: Indices, right: Indices) -> None:
    if templates.ndim != 2 or left.ndim != 1 or left.shape != right.shape:
        raise DataError(f"pairs {left.shape}, {right.shape} of templates {templates.shape}: the shapes do not fit")
    for side in (left, right):
        if len(side) and (side.min() < 0 or side.max() >= len(templates)):
            raise DataError(f"pairs name the templates {side.min()} to {side.max()}, of {len(templates)}")


class _Side(NamedTuple):
    """One side of the pairs: the templates that occur, and which of them each pair has."""

    templates: npt.NDArray[np.intp]
    places: npt.NDArray[np.int32]

    @property
    def num_tiles(self) -> int:
        return -(-len(self.templates) // _TILE)


def _tile_places(left: Indices, right: Indices, num_templates: int) -> tuple[_Side, _Side]:
    """Rows and columns. Pairs are turned round where that makes fewer products than the sides as they are."""
    rows, columns = _side(left, num_templates), _side(right, num_templates)
    occurring = np.union1d(rows.templates, columns.templates)
    num_tiles = -(-len(occurring) // _TILE)
    if rows.num_tiles * columns.num_tiles <= num_tiles * (num_tiles + 1) // 2:
        return rows, columns
    return _side(np.minimum(left, right), num_templates), _side(np.maximum(left, right), num_templates)


def _side(side: Indices, num_templates: int) -> _Side:
    is_present = np.zeros(num_templates, np.bool_)
    is_present[side] = True
    places = np.cumsum(is_present, dtype=np.int32) - np.int32(1)
    return _Side(np.flatnonzero(is_present), places[side])


def _tiles(rows: _Side, columns: _Side) -> Iterator[tuple[int, int, npt.NDArray[np.intp]]]:
    """The pairs in each tile that has any."""
    num_tiles = rows.num_tiles * columns.num_tiles
    # Two-byte numbers are sorted by counting, in a fraction of the time.
    tile: Indices = rows.places // _TILE * np.int32(columns.num_tiles)
    tile += columns.places // _TILE
    if num_tiles <= 1 << 16:
        tile = tile.astype(np.uint16)
    order = np.argsort(tile, kind="stable")
    stops = np.cumsum(np.bincount(tile, minlength=num_tiles))
    for number, stop in enumerate(stops.tolist()):
        start = 0 if number == 0 else int(stops[number - 1])
        if start < stop:
            yield *divmod(number, columns.num_tiles), order[start:stop]


def _tile_scores(tops: Floats, sides: Floats, rows: Indices, columns: Indices) -> Floats:
    if len(rows) >= _DENSE_SHARE * len(tops) * len(sides):
        product: Floats = tops @ sides.T
        return product[rows, columns]
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _GATHERED_PAIRS):
        block = slice(start, start + _GATHERED_PAIRS)
        np.einsum("pd,pd->p", tops[rows[block]], sides[columns[block]], out=scores[block])
    return scores
