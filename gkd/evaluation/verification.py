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

from gkd.evaluation.distances import squared_distances
from gkd.evaluation.folds import THRESHOLDS, best_elsewhere, checked_labels, count_correct, fold_sizes
from gkd.evaluation.tar_far import (
    OperatingPoint,
    area_under_curve,
    check_scores,
    equal_error_rate,
    far_name,
    operating_points,
    roc_curve,
    smallest_far,
)

_ROUNDING = 1e-12  # equal cosines have a spread of about 1e-16 and no d'


@dataclass(frozen=True)
class VerificationResult:
    """The figures of one set of pairs. Accuracies and rates are fractions, thresholds are squared distances.

    `accuracy` and `accuracy_std`: mean and population standard deviation over `fold_accuracies`.
    `fold_thresholds`: the squared distance that each fold was judged at, chosen on the other folds.
    `threshold`: the first of the protocol's thresholds with the best accuracy on all pairs; for use, not for judging.
    `tar_at_far`: None where the set has too few different pairs to measure the FAR.
    `observed_far`: the FAR reached at each target, at most the target; None as above.
    `cosine_at_far`: the lowest cosine that is accepted at each target; None as above, and where nothing is accepted.
    `smallest_far`: one over the number of different pairs; no smaller FAR can be told from zero.
    `d_prime`: difference of the mean cosines over the root mean of the two variances; None where
        all same pairs, and all different ones, have equal cosines.
    `distances`, `is_same`: (P,), what the figures come from, for plots; not part of `to_json()`.
    """

    accuracy: float
    accuracy_std: float
    fold_accuracies: tuple[float, ...]
    fold_thresholds: tuple[float, ...]
    threshold: float
    tar_at_far: dict[float, float | None]
    observed_far: dict[float, float | None]
    cosine_at_far: dict[float, float | None]
    smallest_far: float
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
            "fold_thresholds": list(self.fold_thresholds),
            "threshold": self.threshold,
            "tar_at_far": _by_name(self.tar_at_far),
            "observed_far": _by_name(self.observed_far),
            "cosine_at_far": _by_name(self.cosine_at_far),
            "smallest_far": self.smallest_far,
            "auc": self.auc,
            "eer": self.eer,
            "num_pairs": self.num_pairs,
            "num_same": self.num_same,
            "mean_same_cosine": self.mean_same_cosine,
            "mean_different_cosine": self.mean_different_cosine,
            "d_prime": self.d_prime,
            "notes": list(self.notes),
        }


def _by_name(figures: dict[float, float | None]) -> dict[str, float | None]:
    return {far_name(far): figure for far, figure in figures.items()}


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
    labels = checked_labels(is_same, folds)
    return verify_distances(squared_distances(left, right), labels, folds)


def verify_distances(
    distances: npt.NDArray[np.float64], is_same: npt.NDArray[Any], folds: int = 10
) -> VerificationResult:
    """As `verify_pairs`, from the squared Euclidean distances (P,) of unit embeddings."""
    labels = checked_labels(is_same, folds)
    curve = roc_curve(-distances, labels)
    sizes = fold_sizes(len(labels), folds)
    num_correct = count_correct(distances, labels, sizes)
    best = best_elsewhere(num_correct)
    accuracies = num_correct[np.arange(folds), best] / sizes
    points = operating_points(curve)
    cosines = 1.0 - distances / 2.0
    return VerificationResult(
        accuracy=float(np.mean(accuracies)),
        accuracy_std=float(np.std(accuracies)),
        fold_accuracies=tuple(float(accuracy) for accuracy in accuracies),
        fold_thresholds=tuple(float(threshold) for threshold in THRESHOLDS[best]),
        threshold=float(THRESHOLDS[np.argmax(num_correct.sum(axis=0))]),
        tar_at_far={target: point and point.tar for target, point in points.items()},
        observed_far={target: point and point.far for target, point in points.items()},
        cosine_at_far={target: _accepted_cosine(point) for target, point in points.items()},
        smallest_far=smallest_far(curve),
        auc=area_under_curve(curve),
        eer=equal_error_rate(curve),
        num_pairs=len(labels),
        num_same=curve.num_same,
        mean_same_cosine=_mean(cosines[labels]),
        mean_different_cosine=_mean(cosines[~labels]),
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
    labels = checked_labels(is_same, folds)
    check_scores(distances, labels)
    sizes = fold_sizes(len(labels), folds)
    thresholds = THRESHOLDS[best_elsewhere(count_correct(distances, labels, sizes))]
    is_right: npt.NDArray[np.bool_] = (distances < np.repeat(thresholds, sizes)) == labels
    return is_right


def _accepted_cosine(point: OperatingPoint | None) -> float | None:
    """The cosine of an accepted score, which is a negated squared distance."""
    return None if point is None or math.isinf(point.threshold) else 1.0 + point.threshold / 2.0


def _mean(cosines: npt.NDArray[np.float64]) -> float:
    """The mean, also of values whose sum is beyond float64."""
    with np.errstate(over="ignore"):
        mean = float(cosines.mean())
    return mean if math.isfinite(mean) else float((cosines / len(cosines)).sum())


def _d_prime(same: npt.NDArray[np.float64], different: npt.NDArray[np.float64]) -> float | None:
    with np.errstate(over="ignore", invalid="ignore"):
        spread = math.sqrt((float(same.var()) + float(different.var())) / 2)
        d_prime = float(same.mean() - different.mean()) / spread if spread > _ROUNDING else math.nan
    return d_prime if math.isfinite(d_prime) and math.isfinite(spread) else None


def _notes(sizes: npt.NDArray[np.int64]) -> tuple[str, ...]:
    num_larger = int((sizes > sizes[-1]).sum())
    if num_larger == 0:
        return ()
    return (
        f"{int(sizes.sum())} pairs do not divide into {len(sizes)} folds: "
        f"the first {num_larger} have {int(sizes[0])} pairs, the others {int(sizes[-1])}",
    )
