"""Pair verification, the figure that papers quote for LFW, CFP-FP, AgeDB-30 and their like.

Source: the protocol of the public insightface evaluation. Embeddings are normalised; d is the squared Euclidean
distance; a pair is accepted where d < threshold; thresholds are 0, 0.01 … 3.99; each of ten contiguous folds is judged
at the first threshold with the best accuracy on the other nine. Where we differ: TAR at a FAR is pooled over all pairs
and read from the observed scores, without a grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.evaluation.distances import squared_distances
from gkd.evaluation.tar_far import (
    area_under_curve,
    check_both_classes,
    equal_error_rate,
    far_name,
    roc_curve,
    tar_at_far,
)

THRESHOLDS = np.arange(0, 4, 0.01)
_ROUNDING = 1e-12  # equal cosines have a spread of about 1e-16 and no d'


@dataclass(frozen=True)
class VerificationResult:
    """The figures of one set of pairs. Accuracies and rates are fractions, thresholds are squared distances.

    `accuracy` and `accuracy_std`: mean and population standard deviation over `fold_accuracies`.
    `threshold`: the first of the protocol's thresholds with the best accuracy on all pairs; for use, not for judging.
    `tar_at_far`: None where the set has too few different pairs to measure the FAR.
    `d_prime`: difference of the mean cosines over the root mean of the two variances; None where
        all same pairs, and all different ones, have equal cosines.
    `distances`, `is_same`: (P,), what the figures come from, for plots; not part of `to_json()`.
    """

    accuracy: float
    accuracy_std: float
    fold_accuracies: tuple[float, ...]
    threshold: float
    tar_at_far: dict[float, float | None]
    auc: float
    eer: float
    num_pairs: int
    num_same: int
    mean_same_cosine: float
    mean_different_cosine: float
    d_prime: float | None
    notes: tuple[str, ...]
    distances: npt.NDArray[np.float64] = field(repr=False, compare=False)
    is_same: npt.NDArray[np.bool_] = field(repr=False, compare=False)

    @property
    def cosines(self) -> npt.NDArray[np.float64]:
        """The cosine similarity of each pair, (P,)."""
        return 1.0 - self.distances / 2.0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`; FAR targets are named like `1e-4`, what cannot be measured is None."""
        return {
            "accuracy": self.accuracy,
            "accuracy_std": self.accuracy_std,
            "fold_accuracies": list(self.fold_accuracies),
            "threshold": self.threshold,
            "tar_at_far": {far_name(far): tar for far, tar in self.tar_at_far.items()},
            "auc": self.auc,
            "eer": self.eer,
            "num_pairs": self.num_pairs,
            "num_same": self.num_same,
            "mean_same_cosine": self.mean_same_cosine,
            "mean_different_cosine": self.mean_different_cosine,
            "d_prime": self.d_prime,
            "notes": list(self.notes),
        }


def verify_pairs(
    left: npt.NDArray[Any], right: npt.NDArray[Any], is_same: npt.NDArray[Any], folds: int = 10
) -> VerificationResult:
    """Judge pairs of embeddings by the protocol above.

    Args:
        left: (P, D) first embedding of each pair; sum an image's and its mirror image's embedding beforehand where
            the flip protocol is wanted. Any length: they are normalised here.
        right: (P, D) second embedding of each pair.
        is_same: (P,) bool, whether the two are of one person.
        folds: number of contiguous folds. Where P is not a multiple, the first P mod folds get one pair more.

    Raises:
        DataError: the shapes do not fit, an embedding is NaN, infinite or zero (the pairs are named), there are fewer
            pairs than folds, or only one class is present.
    """
    labels = np.asarray(is_same)
    _check_counts(labels, folds)
    return verify_distances(squared_distances(left, right), labels, folds)


def verify_distances(
    distances: npt.NDArray[np.float64], is_same: npt.NDArray[Any], folds: int = 10
) -> VerificationResult:
    """As `verify_pairs`, from the squared Euclidean distances (P,) of unit embeddings."""
    labels = np.asarray(is_same)
    _check_counts(labels, folds)
    labels = labels.astype(np.bool_)
    curve = roc_curve(-distances, labels)
    sizes = fold_sizes(len(labels), folds)
    num_correct = _count_correct(distances, labels, sizes)
    accuracies = _fold_accuracies(num_correct, sizes)
    cosines = 1.0 - distances / 2.0
    return VerificationResult(
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        fold_accuracies=tuple(float(accuracy) for accuracy in accuracies),
        threshold=float(THRESHOLDS[np.argmax(num_correct.sum(axis=0))]),
        tar_at_far=tar_at_far(curve),
        auc=area_under_curve(curve),
        eer=equal_error_rate(curve),
        num_pairs=len(labels),
        num_same=curve.num_same,
        mean_same_cosine=float(cosines[labels].mean()),
        mean_different_cosine=float(cosines[~labels].mean()),
        d_prime=_d_prime(cosines[labels], cosines[~labels]),
        notes=_notes(sizes),
        distances=distances,
        is_same=labels,
    )


def judge_pairs(
    distances: npt.NDArray[np.float64], is_same: npt.NDArray[Any], folds: int = 10
) -> npt.NDArray[np.bool_]:
    """Whether each pair is judged rightly at the threshold of its fold, (P,).

    The mean over a fold is that fold's accuracy in `verify_distances`. Arguments and errors are as there.
    """
    labels = np.asarray(is_same)
    _check_counts(labels, folds)
    labels = labels.astype(np.bool_)
    sizes = fold_sizes(len(labels), folds)
    thresholds = THRESHOLDS[_best_elsewhere(_count_correct(distances, labels, sizes))]
    is_right: npt.NDArray[np.bool_] = (distances < np.repeat(thresholds, sizes)) == labels
    return is_right


def fold_sizes(num_pairs: int, folds: int) -> npt.NDArray[np.int64]:
    """Number of pairs in each contiguous fold, (folds,): the first `num_pairs mod folds` get one more."""
    return num_pairs // folds + (np.arange(folds) < num_pairs % folds).astype(np.int64)


def _check_counts(labels: npt.NDArray[Any], folds: int) -> None:
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


def _count_correct(
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


def _fold_accuracies(num_correct: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    best = _best_elsewhere(num_correct)
    accuracies: npt.NDArray[np.float64] = num_correct[np.arange(len(sizes)), best] / sizes
    return accuracies


def _best_elsewhere(num_correct: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The threshold that each fold is judged at, (folds,): the first with the best accuracy on the other folds."""
    correct_elsewhere = num_correct.sum(axis=0) - num_correct
    best: npt.NDArray[np.intp] = np.argmax(correct_elsewhere, axis=1)
    return best


def _d_prime(same: npt.NDArray[np.float64], different: npt.NDArray[np.float64]) -> float | None:
    spread = math.sqrt((float(same.var()) + float(different.var())) / 2)
    return float(same.mean() - different.mean()) / spread if spread > _ROUNDING else None


def _notes(sizes: npt.NDArray[np.int64]) -> tuple[str, ...]:
    num_larger = int((sizes > sizes[-1]).sum())
    if num_larger == 0:
        return ()
    return (
        f"{int(sizes.sum())} pairs do not divide into {len(sizes)} folds: "
        f"the first {num_larger} have {int(sizes[0])} pairs, the others {int(sizes[-1])}",
    )
