"""Chooses verification pairs: half of one person, half of two, in contiguous folds that are balanced themselves."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, count, product

import numpy as np

from gkd.core.errors import ConfigError, DataError

Key = tuple[int, int]  # the number of a person and of one of their pictures
Pair = tuple[Key, Key]

_log = logging.getLogger(__name__)


def half_of_fold(what: str, num_pairs: int, folds: int) -> int:
    """How many pairs of one person, and how many of two, a fold has.

    Raises:
        ConfigError: the pairs do not split into equal halves of folds; `what` begins the message.
    """
    if folds < 1 or num_pairs < 2 * folds or num_pairs % (2 * folds):
        raise ConfigError(
            f"{what}: {num_pairs} pairs do not split into {folds} folds of equal halves; "
            f"use a positive multiple of {2 * max(folds, 1)}"
        )
    return num_pairs // (2 * folds)


def fold_flags(half: int, folds: int) -> list[bool]:
    """Whether each pair shows one person: in each fold first those that do, then as many that do not."""
    return ([True] * half + [False] * half) * folds


def two_of(num_people: int, num_pairs: int, stream: np.random.Generator) -> Iterator[tuple[int, int]]:
    """`num_pairs` times two of `num_people` people, evenly and at random, in either order."""
    lefts, steps = stream.random(num_pairs).tolist(), stream.random(num_pairs).tolist()
    for left, step in zip(lefts, steps, strict=True):
        place = int(left * num_people)
        yield place, (place + 1 + int(step * (num_people - 1))) % num_people


def choose_pairs(
    num_images: Sequence[int], num_pairs: int, folds: int = 10, seed: int = 0
) -> tuple[list[Key], list[bool]]:
    """Choose pairs among people of whom `num_images[person]` pictures exist; a function of the arguments alone.

    No pair comes twice, in either order, and no picture is paired with itself. Folds share nobody where each can have
    two people with at least two pictures; else all folds draw from everybody, and a warning says so. Pairs of one
    person are spread evenly over the people of a fold.

    Returns:
        The 2P pictures, pair i being 2i and 2i + 1, and whether each of the P pairs shows one person.

    Raises:
        ConfigError: pairs that do not split into halves of folds, or a negative seed.
        DataError: fewer distinct pairs than asked for; the message gives the largest number that there is.
    """
    half = half_of_fold("pairs", num_pairs, folds)
    if seed < 0:
        raise ConfigError(f"pairs: the seed must be at least 0, got {seed}")
    _check_people(num_images)
    stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, folds])))
    groups = _deal(num_images, folds, stream)
    _check_capacity(num_images, groups, num_pairs, folds)
    share = half * folds // len(groups)
    same = [pair for people in groups for pair in _same_pairs(people, num_images, share, stream)]
    different = [pair for people in groups for pair in _different_pairs(people, num_images, share, stream)]
    keys: list[Key] = []
    for start in range(0, half * folds, half):
        for pair in same[start : start + half] + different[start : start + half]:
            keys.extend(pair)
    return keys, fold_flags(half, folds)


def _check_people(num_images: Sequence[int]) -> None:
    if len(num_images) < 2:
        raise DataError(f"pairs of two people need at least 2 identities, but there are {len(num_images)}")
    if max(num_images) < 2:
        raise DataError(
            f"pairs of one person need an identity with at least 2 images, but all {len(num_images)} have one; "
            "add images"
        )


def _deal(num_images: Sequence[int], folds: int, stream: np.random.Generator) -> list[list[int]]:
    """The people of each fold, or one group of all where they are too few to share none."""
    order = stream.permutation(len(num_images)).tolist()
    several = [person for person in order if num_images[person] > 1]
    if len(several) < 2 * folds:
        if folds > 1:
            _log.warning(
                "the %d folds of pairs share identities: for folds that share none, %d identities with at least 2 "
                "images are needed, but there are %d",
                folds,
                2 * folds,
                len(several),
            )
        return [order]
    single = [person for person in order if num_images[person] == 1]
    # To and fro over the folds by falling number of images, so that all folds have about as many.
    several.sort(key=lambda person: -num_images[person])
    period = 2 * folds
    return [several[fold::period] + several[period - 1 - fold :: period] + single[fold::folds] for fold in range(folds)]


def _check_capacity(num_images: Sequence[int], groups: list[list[int]], num_pairs: int, folds: int) -> None:
    folds_of_group = folds // len(groups)
    counts = [[num_images[person] for person in people] for people in groups]
    most_same = min(sum(size * (size - 1) // 2 for size in group) for group in counts) // folds_of_group
    most_different = min(_num_different(group) for group in counts) // folds_of_group
    half = num_pairs // (2 * folds)
    for kind, most in (("one person", most_same), ("two people", most_different)):
        if half > most:
            largest = 2 * folds * min(most_same, most_different)
            advice = f"the largest --num-pairs that works is {largest}" if largest else "use fewer --folds"
            raise DataError(
                f"{num_pairs} pairs in {folds} folds need {half} distinct pairs of {kind} in each fold, but with "
                f"{len(num_images)} identities and {sum(num_images)} images there are only {most}; {advice}"
            )


def _num_different(counts: list[int]) -> int:
    return (sum(counts) ** 2 - sum(size * size for size in counts)) // 2


def _same_pairs(
    people: list[int], num_images: Sequence[int], num_pairs: int, stream: np.random.Generator
) -> Iterator[Pair]:
    """Distinct pairs of one person each, going round the people and passing over those whose pairs are used up."""
    totals = {person: num_images[person] * (num_images[person] - 1) // 2 for person in people}
    order: list[int] = []
    for turn in count():
        people = [person for person in people if totals[person] > turn]
        order += people
        if len(order) >= num_pairs:
            break
    uses = Counter(order[:num_pairs])
    numbers = {person: iter(stream.choice(totals[person], uses[person], replace=False).tolist()) for person in uses}
    for person in order[:num_pairs]:
        first, second = _unrank(next(numbers[person]))
        yield (person, first), (person, second)


def _unrank(number: int) -> tuple[int, int]:
    """Pair `number` of (0, 1), (0, 2), (1, 2), (0, 3) …"""
    second = (1 + math.isqrt(1 + 8 * number)) // 2
    return number - second * (second - 1) // 2, second


def _different_pairs(
    people: list[int], num_images: Sequence[int], num_pairs: int, stream: np.random.Generator
) -> Iterator[Pair]:
    """Distinct pairs of two people each: people evenly at random, then their pictures."""
    counts = [num_images[person] for person in people]
    if 2 * num_pairs >= _num_different(counts):
        # Drawing until enough are new would take long where nearly all are wanted.
        pairs = [pair for two in combinations(people, 2) for pair in _pairs_of(*two, num_images)]
        yield from (pairs[place] for place in stream.permutation(len(pairs))[:num_pairs].tolist())
        return
    chosen: dict[Pair, None] = {}
    while len(chosen) < num_pairs:
        missing = num_pairs - len(chosen)
        pictures = stream.random((missing, 2)).tolist()
        for places, fractions in zip(two_of(len(people), missing, stream), pictures, strict=True):
            left, right = sorted(
                (people[place], int(fraction * counts[place]))
                for place, fraction in zip(places, fractions, strict=True)
            )
            chosen[left, right] = None
    yield from chosen


def _pairs_of(left: int, right: int, num_images: Sequence[int]) -> Iterator[Pair]:
    for first, second in product(range(num_images[left]), range(num_images[right])):
        yield (left, first), (right, second)
