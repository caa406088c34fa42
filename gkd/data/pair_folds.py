"""Keeps the folds of listed pairs even where images are missing, and tells where they are not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from gkd.core.errors import DataError
from gkd.data.pair_lists import ListedPair

Counts = dict[int, tuple[int, int]]  # of each fold, the pairs of one person and of two

_log = logging.getLogger(__name__)


def count_folds(pairs: Sequence[ListedPair]) -> Counts:
    """The pairs of one person and of two in each fold, by ascending fold."""
    counts = Counter((pair.fold, pair.is_same) for pair in pairs)
    return {fold: (counts[fold, True], counts[fold, False]) for fold in sorted({pair.fold for pair in pairs})}


def drop_pairs(pairs: Sequence[ListedPair], missing: frozenset[str]) -> list[ListedPair]:
    """The pairs without a missing image, and without as many others as make folds that were even stay so.

    Readers of a .bin cut it into equal contiguous parts, so one pair less in one fold would move every later fold's
    border. Where all folds had the same counts, each is cut to the counts of the poorest, from its end; else only the
    pairs with a missing image go.

    Raises:
        DataError: a fold, or one kind of pair in it, is left empty.
    """
    before = count_folds(pairs)
    kept = [pair for pair in pairs if pair.left not in missing and pair.right not in missing]
    after = {fold: count_folds(kept).get(fold, (0, 0)) for fold in before}
    for fold, (num_same, num_different) in after.items():
        if (before[fold][0] and not num_same) or (before[fold][1] and not num_different):
            raise DataError(
                f"fold {fold} is left with {num_same} pairs of one person and {num_different} of two; "
                "add the missing images"
            )
    if len(before) < 2 or len(set(before.values())) > 1:
        return kept
    return _cut(kept, _smallest(before, after))


def _smallest(before: Counts, after: Counts) -> tuple[int, int]:
    num_same = min(counts[0] for counts in after.values())
    num_different = min(counts[1] for counts in after.values())
    was_half = all(same == different for same, different in before.values())
    return (min(num_same, num_different),) * 2 if was_half else (num_same, num_different)


def _cut(pairs: Sequence[ListedPair], counts: tuple[int, int]) -> list[ListedPair]:
    seen: Counter[tuple[int, bool]] = Counter()
    kept = []
    for pair in pairs:
        seen[pair.fold, pair.is_same] += 1
        if seen[pair.fold, pair.is_same] <= counts[0 if pair.is_same else 1]:
            kept.append(pair)
    _log.warning(
        "%d more pairs were left out so that each fold has %d pairs of one person and %d of two",
        len(pairs) - len(kept),
        *counts,
    )
    return kept


def tell_folds(pairs: Sequence[ListedPair]) -> None:
    """Say where the folds that evaluation will cut, equal and contiguous, are not those of the list."""
    counts = count_folds(pairs)
    sizes = [same + different for same, different in counts.values()]
    if max(sizes) - min(sizes) > 1 or sizes != sorted(sizes, reverse=True):
        _log.warning(
            "the %d folds have %d to %d pairs, but a .bin holds no folds: evaluation cuts it into equal contiguous "
            "parts, which will not be these",
            len(sizes),
            min(sizes),
            max(sizes),
        )
    one_kind = [fold for fold, (same, different) in counts.items() if not same or not different]
    if one_kind:
        _log.warning("these folds have pairs of one kind only: %s", ", ".join(map(str, one_kind[:10])))
