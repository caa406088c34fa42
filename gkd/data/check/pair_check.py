"""Checks a verification set (.bin): images, flags, folds, duplicates.

P pairs, 2P images.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

from gkd.data.check.decoding import Images, check_images, most_common_size, read_bytes
from gkd.data.check.faults import Faults
from gkd.data.pairs import PairSet

NUM_FOLDS = 10


def check_pairs(path: str | Path, num_workers: int | None = None) -> tuple[PairSet, Faults]:
    """Check the file `path`. It is in memory as a whole, as every reader of this format has it.

    Raises:
        DataError: it cannot be read as pairs; see `PairSet.load`.
    """
    path = Path(path)
    pairs, faults = PairSet.load(path), Faults(path)
    images = check_images(pairs.images, read_bytes, num_workers)
    _report_images(images, faults)
    _report_flags(pairs, faults)
    _report_repeats(pairs, images, faults)
    return pairs, faults


def unbalanced_folds(pairs: PairSet, num_folds: int = NUM_FOLDS) -> list[int]:
    """The folds whose pairs are not half of one person and half of two, as contiguous folds cut them."""
    bounds = np.cumsum([0, *(len(fold) for fold in np.array_split(pairs.is_same, num_folds))])
    folds = [pairs.is_same[start:stop] for start, stop in pairwise(bounds)]
    return [number for number, fold in enumerate(folds) if 2 * int(fold.sum()) != len(fold)]


def _place(index: int) -> str:
    return f" pair {index // 2}, {'right' if index % 2 else 'left'} image"


def _report_images(images: Images, faults: Faults) -> None:
    for bad in images.bad:
        faults.add(bad.kind, bad.what, _place(bad.image), key=bad.image)
    size = most_common_size(images)
    is_other = (images.sizes[:, 0] > 0) & np.any(images.sizes != (size or (0, 0)), axis=1)
    for index in np.flatnonzero(is_other).tolist():
        assert size is not None
        height, width = images.sizes[index]
        what = f"the image is {height}x{width} pixels, most are {size[0]}x{size[1]}"
        faults.add("size", what, _place(index), key=index)


def _report_flags(pairs: PairSet, faults: Faults) -> None:
    num_same = int(pairs.is_same.sum())
    if num_same in (0, len(pairs)):
        kind = "of one person" if num_same else "of two persons"
        faults.add("one-class", f"all {len(pairs)} pairs are {kind}: no accuracy can be computed", is_warning=True)
        return
    if len(pairs) < NUM_FOLDS:
        faults.add("folds", f"{len(pairs)} pairs cannot be cut into {NUM_FOLDS} folds", is_warning=True)
        return
    folds = unbalanced_folds(pairs)
    if len(pairs) % NUM_FOLDS or folds:
        what = f"{len(pairs)} pairs in {NUM_FOLDS} contiguous folds: not half of one person in folds {folds}"
        faults.add("folds", what, is_warning=True)


def _report_repeats(pairs: PairSet, images: Images, faults: Faults) -> None:
    """The same image on both sides of a pair, and a pair that occurs twice."""
    names = [row.tobytes() for row in images.digests]
    first: dict[tuple[bytes, bytes], int] = {}
    flags = Counter[tuple[bytes, bytes]]()
    for number in range(len(pairs)):
        left, right = names[2 * number], names[2 * number + 1]
        place = f" pair {number}"
        if left == right:
            # Of one person it is a wasted pair; of two it is a lie.
            is_same = bool(pairs.is_same[number])
            what = "both images are the same, byte for byte" + (
                "" if is_same else ", but it is said to show two persons"
            )
            faults.add("same-image", what, place, key=number, is_warning=is_same)
        pair = (min(left, right), max(left, right))
        other = first.setdefault(pair, number)
        if other == number:
            flags[pair] = int(pairs.is_same[number])
        elif flags[pair] != int(pairs.is_same[number]):
            faults.add("contradiction", f"is pair {other} again, with the other flag", place, key=number)
        else:
            faults.add("duplicate", f"is pair {other} again", place, key=number, is_warning=True)
