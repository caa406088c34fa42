"""Confidence intervals of the verification figures, by resampling the pairs or the persons on them.

Shapes: P pairs, R resamples, T FAR targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.evaluation.folds import checked_labels, fold_sizes
from gkd.evaluation.resampling import IdentityResampling, PairResampling, Resampling
from gkd.evaluation.tar_far import FAR_TARGETS, far_name, operating_points, roc_curve
from gkd.evaluation.verification import VerificationResult, judge_pairs, verify_distances
from gkd.evaluation.weighted import Values, WeightedFigures

_BLOCK_ELEMENTS = 1 << 20
_MIN_USABLE_SHARE = 0.5
_FEW_ERRORS = 10
_FEW_PERSONS = 100


class Interval(NamedTuple):
    """A two-sided interval: `confidence` is the share of the resampled figures inside, `method` how it was found.

    `num_resamples` counts those that gave a figure.
    """

    low: float
    high: float
    confidence: float
    method: str
    num_resamples: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return self._asdict()


@dataclass(frozen=True)
class VerificationIntervals:
    """Intervals of the figures of a `VerificationResult`; None where the figure itself cannot be measured.

    `notes` names the figures that rest on too few errors, and too few persons, for intervals to be trusted.
    """

    accuracy: Interval
    auc: Interval
    eer: Interval
    tar_at_far: dict[float, Interval | None]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`; FAR targets are named like `1e-4`."""
        tars = {far_name(far): None if found is None else found.to_json() for far, found in self.tar_at_far.items()}
        return {
            "accuracy": self.accuracy.to_json(),
            "auc": self.auc.to_json(),
            "eer": self.eer.to_json(),
            "tar_at_far": tars,
            "notes": list(self.notes),
        }


def verification_intervals(
    distances: npt.NDArray[Any],
    is_same: npt.NDArray[Any],
    *,
    ids: npt.NDArray[Any] | None = None,
    folds: int = 10,
    far_targets: Sequence[float] = FAR_TARGETS,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> VerificationIntervals:
    """Percentile bootstrap intervals of accuracy, area under the ROC, equal error rate and TAR at each FAR.

    Each resample goes through the whole protocol: the threshold of each fold is chosen anew on the other folds, and
    the threshold of a FAR on the resampled different pairs. What is covered is the figure's expectation in sets of
    this size from the same source.

    Give `ids` where they are known: pairs that share a person are not independent, and intervals over pairs are then
    too narrow, those over persons wide enough or, where most persons are in few different pairs, wider than need be;
    the truth lies between. From about 100 persons on they cover as stated. Neither says what another training run of
    the network would give.

    Resampling knows only the errors that were seen. Where no pair is judged wrongly the interval has no width, which
    is its limit and not certainty: no error in n independent pairs still allows for error rates up to about 3 / n
    (95 % confidence). Figures that rest on fewer than ten errors, such as a TAR at a FAR of three false accepts, are
    covered less often than stated; `notes` names them.

    The percentile interval is used since neither the bias-corrected nor the accelerated one (BCa, chapter 14) covered
    better over all figures in simulation (100 to 2,000 pairs, nominal 95 %): for the area under the ROC, 93 to 97 %,
    about 1 point nearer at best; for the accuracy 88 to 94 %, where the percentile interval covers 97 to 99 %: a
    resample has fewer distinct pairs to choose thresholds on, so it spreads about an eighth too much.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, the percentile interval;
    `PairResampling` and `IdentityResampling` for what is drawn.

    Args:
        distances: (P,) squared Euclidean distances of unit embeddings.
        is_same: (P,) bool.
        ids: (P, 2) the persons on the two sides of each pair, to resample persons; None to resample pairs.
        folds: number of contiguous folds.
        far_targets: T false accept rates, fractions.
        num_resamples: R.
        confidence: share of the resampled figures inside each interval.
        seed: start of the resampling.

    Raises:
        DataError: as `verify_distances`; a setting is out of its range; or the persons do not fit the pairs or are so
            few that resamples lack a class.
    """
    figures = [WeightedFigures(distances, is_same, folds, far_targets)]
    resampling = resampling_of(is_same, ids, folds)
    (columns,) = resampled_figures(figures, resampling, num_resamples, confidence, seed)
    ends = np.quantile(columns, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).T
    accuracy, auc, eer, *tars = (
        Interval(float(low), float(high), confidence, resampling.method, len(columns)) for low, high in ends
    )
    result = verify_distances(np.asarray(distances, dtype=np.float64), is_same, folds)
    notes = _few_errors(result, far_targets) + _few_persons(resampling)
    return VerificationIntervals(accuracy, auc, eer, by_target(figures[0].is_measurable, tars), notes)


def _few_persons(resampling: Resampling) -> tuple[str, ...]:
    if not isinstance(resampling, IdentityResampling) or resampling.num_identities >= _FEW_PERSONS:
        return ()
    few = f"{resampling.num_identities} persons, fewer than {_FEW_PERSONS}"
    return (f"{few}: intervals over persons are likely too narrow",)


def _few_errors(result: VerificationResult, far_targets: Sequence[float]) -> tuple[str, ...]:
    """The figures with few errors, and how many errors they have."""
    num_different = result.num_pairs - result.num_same
    num_wrong = int((~judge_pairs(result.distances, result.is_same, len(result.fold_accuracies))).sum())
    counts = [
        ("accuracy", num_wrong, "pairs judged wrongly"),
        ("EER", round(result.eer * min(result.num_same, num_different)), "errors of either kind"),
    ]
    for target, point in operating_points(roc_curve(-result.distances, result.is_same), far_targets).items():
        if point is not None:
            name = f"TAR at FAR {far_name(target)}"
            counts.append((name, round(point.far * num_different), "false accepts"))
            counts.append((name, round((1 - point.tar) * result.num_same), "misses"))
    return tuple(
        f"{name} rests on {count} {kind}, fewer than {_FEW_ERRORS}: its interval is likely too narrow"
        for name, count, kind in counts
        if count < _FEW_ERRORS
    )


def by_target(is_measurable: dict[float, bool], found: Sequence[Any]) -> dict[float, Any]:
    """What was found at the measurable FAR targets, in their order, and None at the others."""
    remaining = iter(found)
    return {target: next(remaining) if is_known else None for target, is_known in is_measurable.items()}


def resampling_of(is_same: npt.NDArray[Any], ids: npt.NDArray[Any] | None, folds: int) -> Resampling:
    """Over persons where they are known, else over pairs."""
    labels = checked_labels(is_same, folds)
    if ids is not None:
        return IdentityResampling(ids, labels)
    return PairResampling(labels, np.repeat(np.arange(folds), fold_sizes(len(labels), folds)))


def resampled_figures(
    figures: Sequence[WeightedFigures], resampling: Resampling, num_resamples: int, confidence: float, seed: int
) -> list[Values]:
    """The figures of each network in the same resamples, (R, 3 + T) each.

    Columns: accuracy, area under the ROC, equal error rate, TAR at each FAR that can be measured. Resamples that lack
    a class have no figures and are left out.

    Raises:
        DataError: a setting is out of its range, or half of the resamples lack a class.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise DataError(f"need a resample and a confidence between 0 and 1, got {num_resamples} and {confidence}")
    generator = np.random.default_rng(seed)
    parts: list[list[Values]] = [[] for _ in figures]
    size = max(1, _BLOCK_ELEMENTS // figures[0].num_pairs)
    for start in range(0, num_resamples, size):
        by_fold, pooled = resampling.draw(min(size, num_resamples - start), generator)
        is_usable = figures[0].has_both_classes(pooled)
        for each, blocks in zip(figures, parts, strict=True):
            blocks.append(each.columns(by_fold[is_usable], pooled[is_usable]))
    columns = [np.concatenate(blocks) for blocks in parts]
    if len(columns[0]) < _MIN_USABLE_SHARE * num_resamples:
        raise DataError(
            f"{num_resamples - len(columns[0])} of {num_resamples} resamples have no same or no different pair: "
            "too few persons to resample; leave ids out, or give a larger set"
        )
    return columns
