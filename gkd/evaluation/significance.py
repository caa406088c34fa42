"""Whether two networks differ on the same pairs: McNemar's test and bootstrap intervals of their gaps.

Shapes: P pairs, R resamples, T FAR targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.evaluation.compare import Gap
from gkd.evaluation.intervals import by_target, resampled_figures, resampling_of
from gkd.evaluation.tar_far import FAR_TARGETS, far_name
from gkd.evaluation.verification import judge_pairs
from gkd.evaluation.weighted import Values, WeightedFigures


class McNemar(NamedTuple):
    """The pairs that only one of two networks judges rightly, and how odd their split is if both are equally good.

    `exact_p` is the two-sided exact binomial p-value; `mid_p` counts the observed split by half, which takes back
    most of the caution that the exact one owes to whole numbers.
    """

    num_only_a_right: int
    num_only_b_right: int
    exact_p: float
    mid_p: float


def mcnemar_test(is_right_a: npt.NDArray[Any], is_right_b: npt.NDArray[Any]) -> McNemar:
    """McNemar's test of two networks' verdicts on the same pairs.

    With b and c pairs that only A or only B judges rightly, k = min(b, c) and X ~ Binomial(b + c, 1/2):
    exact p = min(1, 2 P(X <= k)), mid-p = 2 P(X <= k) - P(X = k). Where b = c the latter is 1; the paper writes
    1 - P(X = k) / 2 for that one case, which is far from any level in use as well.

    Pairs are taken for independent. Where they share persons, p is too small.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947); the mid-p: Fagerland, Lydersen and Laake, The McNemar test for binary matched-pairs data:
    mid-p and asymptotic are better than exact conditional, BMC Medical Research Methodology 13 (2013).

    Args:
        is_right_a: (P,) bool; see `judge_pairs`.
        is_right_b: (P,) bool of the other network on the same pairs in the same order.

    Raises:
        DataError: the shapes do not fit.
    """
    right_a, right_b = np.asarray(is_right_a, dtype=np.bool_), np.asarray(is_right_b, dtype=np.bool_)
    if right_a.ndim != 1 or right_a.shape != right_b.shape:
        raise DataError(f"the networks must be judged on the same pairs, got {right_a.shape} and {right_b.shape}")
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    tail, point = _binomial_tail(min(only_a, only_b), only_a + only_b)
    return McNemar(only_a, only_b, exact_p=min(1.0, 2 * tail), mid_p=min(1.0, 2 * tail - point))


def _binomial_tail(count: int, trials: int) -> tuple[float, float]:
    """P(X <= count) and P(X = count) of X ~ Binomial(trials, 1/2)."""
    log_choices = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    point = math.exp(log_choices - trials * math.log(2))
    falling = np.arange(count, 0, -1)
    return point * (1 + float(np.cumprod(falling / (trials - falling + 1)).sum())), point


@dataclass(frozen=True)
class ModelComparison:
    """How two networks compare on the same pairs. Gaps are A minus B, fractions, with their intervals.

    `tar_gap`: None where the set has too few different pairs to measure the FAR.
    `verdict`: of A, on accuracy: `better` or `worse` only if the interval of the accuracy gap excludes zero and
        `mcnemar_p` is below 1 - `confidence`, else `no difference seen`.
    `method`, `num_resamples`: as in `Interval`.
    """

    accuracy_gap: Gap
    tar_gap: dict[float, Gap | None]
    auc_gap: Gap
    eer_gap: Gap
    mcnemar: McNemar
    verdict: str
    confidence: float
    method: str
    num_resamples: int

    @property
    def mcnemar_p(self) -> float:
        """The two-sided mid-p of McNemar's test."""
        return self.mcnemar.mid_p

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`; FAR targets are named like `1e-4`."""
        return {
            "accuracy_gap": self.accuracy_gap._asdict(),
            "tar_gap": {far_name(far): None if gap is None else gap._asdict() for far, gap in self.tar_gap.items()},
            "auc_gap": self.auc_gap._asdict(),
            "eer_gap": self.eer_gap._asdict(),
            "mcnemar": self.mcnemar._asdict(),
            "verdict": self.verdict,
            "confidence": self.confidence,
            "method": self.method,
            "num_resamples": self.num_resamples,
        }


def compare_models(
    distances_a: npt.NDArray[Any],
    distances_b: npt.NDArray[Any],
    is_same: npt.NDArray[Any],
    ids: npt.NDArray[Any] | None = None,
    *,
    folds: int = 10,
    far_targets: Sequence[float] = FAR_TARGETS,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ModelComparison:
    """Compare two networks on the same pairs by the protocol.

    Both are judged in the same resamples, so what makes a pair hard for both does not widen the interval of the gap.
    Thresholds are chosen anew in each resample, as in `verification_intervals`. McNemar's test keeps the verdicts of
    `judge_pairs`. It takes pairs for independent even where `ids` are given; the verdict needs the interval as well.

    Only what is in the set is covered: that other training seeds would give other networks is not.

    Args:
        distances_a: (P,) squared Euclidean distances of A's unit embeddings.
        distances_b: (P,) of B's, of the same pairs in the same order.
        is_same: (P,) bool.
        ids: (P, 2) the persons on the two sides of each pair, to resample persons; None to resample pairs.
        folds: number of contiguous folds.
        far_targets: T false accept rates, fractions.
        num_resamples: R.
        confidence: share of the resampled gaps inside each interval.
        seed: start of the resampling.

    Raises:
        DataError: as `verification_intervals`.
    """
    figures = [WeightedFigures(distances, is_same, folds, far_targets) for distances in (distances_a, distances_b)]
    resampling = resampling_of(is_same, ids, folds)
    columns_a, columns_b = resampled_figures(figures, resampling, num_resamples, confidence, seed)
    accuracy_gap, auc_gap, eer_gap, *tar_gaps = _gaps(_observed(figures), columns_a - columns_b, confidence)
    mcnemar = mcnemar_test(*(judge_pairs(distances, is_same, folds) for distances in (distances_a, distances_b)))
    return ModelComparison(
        accuracy_gap=accuracy_gap,
        tar_gap=by_target(figures[0].is_measurable, tar_gaps),
        auc_gap=auc_gap,
        eer_gap=eer_gap,
        mcnemar=mcnemar,
        verdict=accuracy_gap.verdict if mcnemar.mid_p < 1 - confidence else "no difference seen",
        confidence=confidence,
        method=resampling.method,
        num_resamples=len(columns_a),
    )


def _observed(figures: Sequence[WeightedFigures]) -> Values:
    """The gap of each figure as observed, every pair counted once."""
    a, b = (each.columns(*[np.ones((1, each.num_pairs), dtype=np.int64)] * 2)[0] for each in figures)
    gap: Values = a - b
    return gap


def _gaps(observed: Values, resampled: Values, confidence: float) -> list[Gap]:
    lows, highs = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Gap(float(gap), float(low), float(high)) for gap, low, high in zip(observed, lows, highs, strict=True)]
