"""The ROC of scored pairs and what is read from it: TAR at a FAR, the area under it, the equal error rate.

FAR: the share of the different pairs that is accepted. TAR: the share of the same pairs that is accepted. Both are
fractions. No grid and no interpolation between thresholds: every observed score is a threshold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError

FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True, eq=False)
class RocCurve:
    """The operating points of a set of scored pairs, from "accept nothing" to "accept everything".

    `thresholds` (K,) fall from +inf through the distinct scores; point i accepts the pairs whose score is
    `>= thresholds[i]`. `num_false_accepts` and `num_true_accepts` (K,) int64 count what is accepted; they never fall.
    """

    thresholds: npt.NDArray[np.float64]
    num_false_accepts: npt.NDArray[np.int64]
    num_true_accepts: npt.NDArray[np.int64]

    @property
    def num_same(self) -> int:
        """The number of same pairs."""
        return int(self.num_true_accepts[-1])

    @property
    def num_different(self) -> int:
        """The number of different pairs."""
        return int(self.num_false_accepts[-1])

    @property
    def far(self) -> npt.NDArray[np.float64]:
        """The false accept rate of each point, (K,)."""
        return self.num_false_accepts / self.num_different

    @property
    def tar(self) -> npt.NDArray[np.float64]:
        """The true accept rate of each point, (K,)."""
        return self.num_true_accepts / self.num_same


def roc_curve(scores: npt.NDArray[Any], is_same: npt.NDArray[np.bool_]) -> RocCurve:
    """All operating points; pairs of equal score are accepted together, so ties make one point.

    Args:
        scores: (P,), higher means more alike. Any increasing function of the similarity gives the same rates.
        is_same: (P,) bool.

    Raises:
        DataError: the shapes differ, a score is not finite, or only one class is present.
    """
    check_scores(scores, is_same)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true_accepts = np.cumsum(is_same[order], dtype=np.int64)[last_of_tie]
    false_accepts = last_of_tie.astype(np.int64) + 1 - true_accepts
    start = np.zeros(1, dtype=np.int64)
    return RocCurve(
        thresholds=np.concatenate(([np.inf], ranked[last_of_tie])),
        num_false_accepts=np.concatenate((start, false_accepts)),
        num_true_accepts=np.concatenate((start, true_accepts)),
    )


def check_scores(scores: npt.NDArray[Any], is_same: npt.NDArray[np.bool_]) -> None:
    """Raise a DataError unless every pair has a finite score and both classes are present."""
    if scores.ndim != 1 or scores.shape != is_same.shape:
        raise DataError(f"scores {scores.shape} and is_same {is_same.shape} must be two vectors of one length")
    check_both_classes(is_same)
    if not np.isfinite(scores).all():
        raise DataError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are NaN or infinite")


def check_both_classes(is_same: npt.NDArray[np.bool_]) -> None:
    """Raise a DataError that names the counts unless same and different pairs are both present."""
    num_same = int(np.count_nonzero(is_same))
    num_different = len(is_same) - num_same
    if num_same == 0 or num_different == 0:
        raise DataError(
            f"{num_same} same and {num_different} different pairs: verification needs both; "
            "check the labels of the pair set"
        )


class OperatingPoint(NamedTuple):
    """What is accepted at one threshold: the score that is still accepted, and the FAR and TAR observed there.

    `threshold` is +inf where nothing is accepted, since different pairs hold the highest scores.
    """

    threshold: float
    far: float
    tar: float


def operating_points(curve: RocCurve, targets: Iterable[float] = FAR_TARGETS) -> dict[float, OperatingPoint | None]:
    """The loosest observed threshold whose FAR is at most each target; None where it cannot be measured.

    The FAR reached is at most the target: below it where no threshold meets it. See `tar_at_far` for None.
    """
    return {target: _point_at_far(curve, target) for target in targets}


def smallest_far(curve: RocCurve) -> float:
    """The smallest FAR above zero that the set can tell, one over its number of different pairs."""
    return 1 / curve.num_different


def tar_at_far(curve: RocCurve, targets: Iterable[float] = FAR_TARGETS) -> dict[float, float | None]:
    """The TAR of the loosest observed threshold whose FAR is at most the target; None where it cannot be measured.

    With n different pairs the smallest FAR above zero is 1/n: for a target below it the answer would be that of FAR 0
    whatever the target, so it is None.
    """
    return {target: None if point is None else point.tar for target, point in operating_points(curve, targets).items()}


def _point_at_far(curve: RocCurve, target: float) -> OperatingPoint | None:
    if target < smallest_far(curve):
        return None
    loosest = int(np.searchsorted(curve.far, target, side="right")) - 1
    return OperatingPoint(float(curve.thresholds[loosest]), float(curve.far[loosest]), float(curve.tar[loosest]))


def area_under_curve(curve: RocCurve) -> float:
    """The area under TAR over FAR by the trapezoid rule: P(same scores higher) + P(equal) / 2.

    Counts stay whole numbers up to the last division, so ties weigh exactly one half.
    """
    widths = np.diff(curve.num_false_accepts)
    doubled_heights = curve.num_true_accepts[1:] + curve.num_true_accepts[:-1]
    return int((widths * doubled_heights).sum()) / (2 * curve.num_same * curve.num_different)


def equal_error_rate(curve: RocCurve) -> float:
    """The rate at which FAR = 1 - TAR, on the straight line between the two observed points around the crossing."""
    far, miss_rate = curve.far, 1.0 - curve.tar
    after = int(np.argmax(far >= miss_rate))  # at the first point 0 < 1, at the last 1 >= 0
    before = after - 1
    gap_before, gap_after = miss_rate[before] - far[before], far[after] - miss_rate[after]
    share = gap_before / (gap_before + gap_after)
    return float(far[before] + share * (far[after] - far[before]))


def far_name(far: float) -> str:
    """A FAR as it is written in tables and metric names: 0.0001 gives `1e-4`."""
    mantissa, exponent = f"{far:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
