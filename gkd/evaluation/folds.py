"""The folds of the verification protocol: how pairs fall into them, and the threshold each is judged at.

Source: the public insightface evaluation; see `gkd.evaluation.verification`.

Shapes: P pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.evaluation.tar_far import check_both_classes

THRESHOLDS = np.arange(0, 4, 0.01)


def fold_sizes(num_pairs: int, folds: int) -> npt.NDArray[np.int64]:
    """Number of pairs in each contiguous fold, (folds,): the first `num_pairs mod folds` get one more."""
    return num_pairs // folds + (np.arange(folds) < num_pairs % folds).astype(np.int64)


def checked_labels(is_same: npt.NDArray[Any], folds: int) -> npt.NDArray[np.bool_]:
    """The labels (P,) as booleans, if the protocol can judge pairs with them.

    One fold has no other folds to choose its threshold on. The public code then chooses it on the pairs that it
    judges, which flatters; here it is refused.

    Raises:
        DataError: no vector of booleans, fewer than two folds or than the folds' number of pairs, or only one class.
    """
    labels = np.asarray(is_same)
    if labels.ndim != 1 or not (labels.dtype == np.bool_ or np.isin(labels, (0, 1)).all()):
        raise DataError(f"is_same must be a vector of booleans, got {labels.dtype} of shape {labels.shape}")
    if folds < 2:
        raise DataError(f"folds must be at least 2, got {folds}")
    num_same = int(np.count_nonzero(labels))
    num_different = len(labels) - num_same
    if len(labels) < folds:
        counts = f"{len(labels)} pairs ({num_same} same, {num_different} different)"
        raise DataError(f"{counts} are fewer than the {folds} folds; give more pairs")
    check_both_classes(labels)
    return labels.astype(np.bool_)


def count_correct(
    distances: npt.NDArray[np.float64], is_same: npt.NDArray[np.bool_], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Pairs judged rightly in each fold at each threshold, (folds, thresholds).

    A pair is accepted from the first threshold above its distance on, so one histogram over "first accepting
    threshold", summed up along the thresholds, counts what all the comparisons would.
    """
    folds, num_thresholds = len(sizes), len(THRESHOLDS)
    first_accepting = np.searchsorted(THRESHOLDS, distances, side="right")
    cell = np.repeat(np.arange(folds), sizes) * (num_thresholds + 1) + first_accepting
    # Accepting a same pair is a gain of one right answer, accepting a different pair a loss.
    shape = (folds, num_thresholds + 1)
    num_cells = folds * (num_thresholds + 1)
    gains = np.bincount(cell[is_same], minlength=num_cells) - np.bincount(cell[~is_same], minlength=num_cells)
    gained: npt.NDArray[np.int64] = np.cumsum(gains.reshape(shape), axis=1)[:, :num_thresholds]
    starts = np.cumsum(sizes) - sizes
    num_different = np.add.reduceat((~is_same).astype(np.int64), starts)
    return gained + num_different[:, None]


def best_elsewhere(num_correct: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The threshold that each fold is judged at: the first with the best accuracy on the other folds.

    Args:
        num_correct: (…, folds, thresholds) pairs judged rightly.

    Returns:
        (…, folds) the number of the threshold.
    """
    correct_elsewhere = num_correct.sum(axis=-2, keepdims=True) - num_correct
    best: npt.NDArray[np.intp] = np.argmax(correct_elsewhere, axis=-1)
    return best
