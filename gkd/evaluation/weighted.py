"""Verification figures of pairs that count more or less than once, for many sets of weights at a time.

With weights of one they are those of `verify_distances`; with whole numbers those of a set in which each pair is
repeated in place.

Shapes: P pairs, B sets of weights, F folds, S distinct scores, T FAR targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.evaluation.folds import THRESHOLDS, best_elsewhere, checked_labels, fold_sizes
from gkd.evaluation.tar_far import operating_points, roc_curve

Values = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int64]


class WeightedFigures:
    """The figures of one network on a set of pairs, as functions of the pairs' weights (B, P).

    Args:
        distances: (P,) squared Euclidean distances of unit embeddings.
        is_same: (P,) bool.
        folds: number of contiguous folds.
        far_targets: T false accept rates, fractions above 0.

    Raises:
        DataError: as `verify_distances`, or a target is out of its range.
    """

    def __init__(
        self, distances: npt.NDArray[Any], is_same: npt.NDArray[Any], folds: int, far_targets: Sequence[float]
    ) -> None:
        labels = checked_labels(is_same, folds)
        distances = np.asarray(distances, dtype=np.float64)
        points = operating_points(roc_curve(-distances, labels), _checked_targets(far_targets))
        self.is_measurable = {target: point is not None for target, point in points.items()}
        self.num_pairs = len(labels)
        self._prepare_roc(distances, labels)
        self._prepare_folds(distances, labels, folds)

    def _prepare_roc(self, distances: Values, is_same: npt.NDArray[np.bool_]) -> None:
        """Ranks: pairs of equal distance are accepted together, at the last of them."""
        self._order = np.argsort(distances, kind="stable")
        ranked = distances[self._order]
        self._is_ranked_same = is_same[self._order]
        self._last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def _prepare_folds(self, distances: Values, is_same: npt.NDArray[np.bool_], folds: int) -> None:
        """Cells: a fold and a first accepting threshold. Accepting a same pair is one right answer more.

        Counts change only at the thresholds that are first to accept some pair, so only these and the first of all are
        kept: the first of the best is among them.
        """
        first_accepting = np.append(np.searchsorted(THRESHOLDS, distances, side="right"), 0)
        kept, columns = np.unique(first_accepting, return_inverse=True)
        self._shape = (folds, len(kept))
        self._num_thresholds = int(np.count_nonzero(kept < len(THRESHOLDS)))
        sizes = fold_sizes(len(distances), folds)
        self._fold_starts = np.cumsum(sizes) - sizes
        cells = np.repeat(np.arange(folds), sizes) * len(kept) + columns[:-1]
        self._cell_order = np.argsort(cells, kind="stable")
        self._cells, self._cell_starts = np.unique(cells[self._cell_order], return_index=True)
        self._gains = np.where(is_same, 1, -1)[self._cell_order]
        self._is_different = (~is_same).astype(np.int64)

    def has_both_classes(self, weights: Weights) -> npt.NDArray[np.bool_]:
        """Whether both classes have a pair that weighs something, (B,)."""
        num_different = weights @ self._is_different
        has_both: npt.NDArray[np.bool_] = (num_different > 0) & (weights.sum(axis=1) > num_different)
        return has_both

    def columns(self, by_fold: Weights, pooled: Weights) -> Values:
        """All figures, (B, 3 + T): accuracy, area under the ROC, equal error rate, TAR at each measurable FAR.

        Args:
            by_fold: (B, P) weights for the accuracy.
            pooled: (B, P) weights for the others.
        """
        return np.column_stack((self.accuracy(by_fold), *self.roc(pooled)))

    def accuracy(self, weights: Weights) -> Values:
        """The mean over the folds of the accuracy at the best threshold of the other folds, (B,).

        A fold whose pairs all weigh nothing is left out of the mean.
        """
        gains = np.zeros((len(weights), self._shape[0] * self._shape[1]), dtype=np.int64)
        gains[:, self._cells] = np.add.reduceat(weights[:, self._cell_order] * self._gains, self._cell_starts, axis=1)
        gained = np.cumsum(gains.reshape(len(weights), *self._shape), axis=2)[:, :, : self._num_thresholds]
        num_different = np.add.reduceat(weights * self._is_different, self._fold_starts, axis=1)
        num_correct = gained + num_different[:, :, None]
        best = best_elsewhere(num_correct)
        right = np.take_along_axis(num_correct, best[:, :, None], axis=2)[:, :, 0]
        totals = np.add.reduceat(weights, self._fold_starts, axis=1)
        accuracies = right / np.maximum(totals, 1)
        mean: Values = accuracies.sum(axis=1) / np.count_nonzero(totals, axis=1)
        return mean

    def roc(self, weights: Weights) -> tuple[Values, Values, Values]:
        """The area under the ROC (B,), the equal error rate (B,), and the TAR at each target that can be measured.

        Each set of weights must leave both classes a pair.

        Returns:
            (B,), (B,) and (B, T); the TAR is that of the loosest threshold whose weighted FAR is at most the target.
        """
        ranked = weights[:, self._order]
        true_accepts = _accepts(ranked * self._is_ranked_same, self._last_of_tie)
        false_accepts = _accepts(ranked * ~self._is_ranked_same, self._last_of_tie)
        far, tar = false_accepts / false_accepts[:, -1:], true_accepts / true_accepts[:, -1:]
        doubled = (np.diff(false_accepts, axis=1) * (true_accepts[:, 1:] + true_accepts[:, :-1])).sum(axis=1)
        area = doubled / (2 * true_accepts[:, -1] * false_accepts[:, -1])
        targets = [target for target, is_measurable in self.is_measurable.items() if is_measurable]
        tars = [_row_values(tar, np.count_nonzero(far <= target, axis=1) - 1) for target in targets]
        return area, _equal_error_rate(far, 1.0 - tar), np.stack(tars, axis=1) if tars else np.empty((len(weights), 0))


def _checked_targets(far_targets: Sequence[float]) -> Sequence[float]:
    if any(not 0 < target <= 1 for target in far_targets):
        raise DataError(f"FAR targets must be fractions above 0, up to 1, got {list(far_targets)}")
    return far_targets


def _accepts(ranked: Weights, last_of_tie: npt.NDArray[np.intp]) -> Weights:
    """Weight accepted at each distinct score, from "accept nothing" on, (B, S + 1)."""
    accepts = np.zeros((len(ranked), len(last_of_tie) + 1), dtype=np.int64)
    accepts[:, 1:] = np.cumsum(ranked, axis=1)[:, last_of_tie]
    return accepts


def _row_values(rows: Values, index: npt.NDArray[np.intp]) -> Values:
    values: Values = np.take_along_axis(rows, index[:, None], axis=1)[:, 0]
    return values


def _equal_error_rate(far: Values, miss_rate: Values) -> Values:
    """As `equal_error_rate`, row by row."""
    after = np.argmax(far >= miss_rate, axis=1)
    before = after - 1
    far_before, far_after = _row_values(far, before), _row_values(far, after)
    gap_before, gap_after = _row_values(miss_rate, before) - far_before, far_after - _row_values(miss_rate, after)
    return far_before + gap_before / (gap_before + gap_after) * (far_after - far_before)
