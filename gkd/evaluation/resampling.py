"""Resamples of a set of pairs, as how often each pair is drawn: over the pairs, or over the persons they show.

Shapes: P pairs, B resamples at once, K persons.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError

Weights = npt.NDArray[np.int64]

_MIN_IDENTITIES = 2
_MAX_NAMED = 8


class Resamples(NamedTuple):
    """How often each pair is drawn, (B, P): for the protocol's accuracy, and for figures pooled over all pairs."""

    by_fold: Weights
    pooled: Weights


class Resampling(Protocol):
    """A way to draw a set of pairs anew."""

    method: str

    def draw(self, count: int, generator: np.random.Generator) -> Resamples:
        """Draw `count` resamples."""


class PairResampling:
    """Pairs drawn with replacement, same and different ones apart.

    How many same and how many different pairs a set has was chosen by those who made it and is no matter of chance,
    so each resample has as many. For the accuracy the pairs are drawn within their folds as well: a pair never lands
    in two folds, so none is judged at a threshold that it helped to choose. The other figures know no folds, and are
    drawn without them: small strata would make the intervals too narrow.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), sections 8.3 and 8.4 (several samples).

    Args:
        is_same: (P,) bool.
        fold_of_pair: (P,) the fold of each pair.
    """

    method = "percentile bootstrap over pairs"

    def __init__(self, is_same: npt.NDArray[np.bool_], fold_of_pair: npt.NDArray[np.int64]) -> None:
        self._pooled = is_same.astype(np.int64)
        self._by_fold = 2 * fold_of_pair + is_same

    def draw(self, count: int, generator: np.random.Generator) -> Resamples:
        """Draw `count` resamples."""
        return Resamples(_draw_within(self._by_fold, count, generator), _draw_within(self._pooled, count, generator))


class IdentityResampling:
    """Persons drawn with replacement; pairs follow.

    Two pairs that show one person are not independent: a face that is hard in one is hard in the other. Where persons
    are drawn instead of pairs, a person drawn m times brings every same pair m times, and a different pair comes as
    often as the product of its two persons' numbers. Folds keep their pairs, so their sizes vary.

    This follows the subject-wise resampling of biometric scores, with the person as the unit. It is exact for same
    pairs. For different pairs it is on the safe side: of n different pairs in which no person occurs twice the product
    finds three times their variance, and less and less too much the more pairs each person is in.

    Source: Bolle, Ratha and Pankanti, Error analysis of pattern recognition systems: the subsets bootstrap, CVIU 93
    (2004), and Poh, Martin and Bengio, Performance generalization in biometric authentication using joint
    user-specific and sample bootstraps, IEEE TPAMI 29 (2007), both of which resample the scores of persons as a whole
    (neither weighs a pair by both its persons); Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007),
    for the product of the two numbers and its variance; McCullagh, Resampling and exchangeable arrays, Bernoulli 6
    (2000), for why no resampling of such pairs is exact.

    Args:
        ids: (P, 2) the persons on the two sides of each pair; whole numbers or text.
        is_same: (P,) bool.

    Raises:
        DataError: the shape does not fit, the persons contradict `is_same`, or there are fewer than two.
    """

    method = "percentile bootstrap over identities"

    def __init__(self, ids: npt.NDArray[Any], is_same: npt.NDArray[np.bool_]) -> None:
        self._codes, self.num_identities = _codes(ids, is_same)
        self._is_same = is_same

    def draw(self, count: int, generator: np.random.Generator) -> Resamples:
        """Draw `count` resamples."""
        numbers = _draw_within(np.zeros(self.num_identities, dtype=np.int64), count, generator)
        left, right = numbers[:, self._codes[:, 0]], numbers[:, self._codes[:, 1]]
        weights = np.where(self._is_same, left, left * right)
        return Resamples(weights, weights)


def _draw_within(strata: npt.NDArray[np.int64], count: int, generator: np.random.Generator) -> Weights:
    """How often each member is drawn, (count, members): each stratum draws as many as it has, from its own."""
    order = np.argsort(strata, kind="stable")
    _, starts, sizes = np.unique(strata[order], return_index=True, return_counts=True)
    num_members = len(strata)
    # One call whose bounds differ by place: the stream of numbers does not depend on the size of a block.
    drawn = np.repeat(starts, sizes) + generator.integers(0, np.repeat(sizes, sizes), (count, num_members))
    drawn += np.arange(count)[:, None] * num_members
    weights = np.empty((count, num_members), dtype=np.int64)
    weights[:, order] = np.bincount(drawn.ravel(), minlength=count * num_members).reshape(count, num_members)
    return weights


def _codes(ids: npt.NDArray[Any], is_same: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], int]:
    persons = np.asarray(ids)
    if persons.shape != (len(is_same), 2) or persons.dtype.kind not in "iuUS":
        raise DataError(
            f"ids must hold a whole number or a text for both sides of each of the {len(is_same)} pairs, "
            f"got {persons.dtype} of shape {persons.shape}"
        )
    wrong = np.flatnonzero((persons[:, 0] == persons[:, 1]) != is_same)
    if len(wrong):
        named = ", ".join(str(pair) for pair in wrong[:_MAX_NAMED]) + (", …" if len(wrong) > _MAX_NAMED else "")
        raise DataError(
            f"ids contradict is_same in {len(wrong)} of {len(is_same)} pairs: pairs {named}; a same pair shows one "
            "person and a different pair two"
        )
    names, codes = np.unique(persons, return_inverse=True)
    if len(names) < _MIN_IDENTITIES:
        raise DataError(f"ids name {len(names)} person(s); resampling persons needs at least {_MIN_IDENTITIES}")
    return codes.reshape(persons.shape).astype(np.int64), len(names)
