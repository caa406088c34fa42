"""Verification pairs of drawn faces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gkd.core.errors import ConfigError
from gkd.data.pair_choice import Key, fold_flags, half_of_fold, two_of
from gkd.data.synthetic.faces import encode_face
from gkd.data.synthetic.identity import PAIR_STREAM, generator

__all__ = ["Encode", "Key", "make_pairs", "pair_keys"]

Encode = Callable[[list[Key]], Iterable[bytes]]


def make_pairs(
    seed: int,
    first_identity: int,
    num_identities: int,
    num_pairs: int,
    folds: int = 10,
    *,
    size: int = 112,
    difficulty: float = 1.0,
    encode: Encode | None = None,
) -> tuple[list[bytes], list[bool]]:
    """Pairs in contiguous folds that share nobody; in each fold the first half of the pairs shows one person each.

    No picture is used twice.

    Args:
        first_identity: the number of the first person.
        num_identities: how many people the pairs show, split evenly over the folds.
        encode: draws a list of pictures, in its order; by default one after the other.

    Returns:
        The 2P images as JPEG, pair i being images 2i and 2i + 1, and whether each of the P pairs shows one person.

    Raises:
        ConfigError: too few people for the folds, or a number of pairs that does not split into halves of folds.
    """
    keys, is_same = pair_keys(seed, first_identity, num_identities, num_pairs, folds)
    # A person's pictures are drawn together: building the head is the slow part.
    ordered = sorted(keys)
    encoded = encode(ordered) if encode else (encode_face(seed, *key, size, difficulty) for key in ordered)
    images = dict(zip(ordered, encoded, strict=True))
    return [images[key] for key in keys], is_same


def pair_keys(
    seed: int, first_identity: int, num_identities: int, num_pairs: int, folds: int = 10
) -> tuple[list[Key], list[bool]]:
    """Who is in which pair: what `make_pairs` draws.

    Raises:
        ConfigError: see `make_pairs`.
    """
    half = half_of_fold("synthetic pairs", num_pairs, folds)
    if num_identities < 2 * folds:
        raise ConfigError(
            f"synthetic pairs: {folds} folds that share nobody need at least {2 * folds} identities, "
            f"got {num_identities}"
        )
    stream = generator(seed, PAIR_STREAM, first_identity, num_identities, num_pairs, folds)
    pictures: dict[int, int] = {}
    keys: list[Key] = []
    for fold in range(folds):
        people = first_identity + np.arange(fold * num_identities // folds, (fold + 1) * num_identities // folds)
        for person in _fold_people(people.tolist(), half, stream):
            keys.append((person, pictures.get(person, 0)))
            pictures[person] = keys[-1][1] + 1
    return keys, fold_flags(half, folds)


def _fold_people(people: list[int], half: int, stream: np.random.Generator) -> Iterator[int]:
    """The people of a fold's images in order: `half` pairs of one person, then `half` of two."""
    for pair in range(half):
        yield from (people[pair % len(people)],) * 2
    for left, right in two_of(len(people), half, stream):
        yield people[left]
        yield people[right]
