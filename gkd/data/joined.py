"""Several sets of faces as one."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np

from gkd.core.errors import ConfigError, DataError
from gkd.data.face_data import FaceData, is_streamed
from gkd.data.sampling.order import Int64s
from gkd.data.sampling.passes import num_taken

_log = logging.getLogger(__name__)


class JoinedFaces:
    """The images of several sets, one set after the other; sample ids count through. It is face data itself.

    A single set of weight 1 behaves, as to labels, names and fingerprint, exactly as that set alone.

    Args:
        sets: the sets, at least one.
        weights: passes over each set per epoch: 1 is once, 2 twice, 0.5 one half each epoch, the other half the next.
            Rounded so that an epoch takes a whole number of images of the set; see `gkd.data.sampling.passes`.
        identities: "separate" keeps the identities of different sets apart: the labels of each set follow those of the
            sets before it. "by_name" takes the same name for the same person: labels number the names as they come.

    Raises:
        ConfigError: no set, not one weight for each set, or a weight that takes no image.
        DataError: by name, and a set has no names or has one name twice.
    """

    def __init__(
        self, sets: Sequence[FaceData], *, weights: Sequence[float], identities: Literal["separate", "by_name"]
    ) -> None:
        _check(sets, weights, identities)
        self._sets, self._weights = tuple(sets), tuple(float(weight) for weight in weights)
        self._starts = [0, *accumulate(len(faces) for faces in sets)]
        self._ranges = [range(*borders) for borders in pairwise(self._starts)]
        self._is_by_name = identities == "by_name"
        self._names = tuple(_joint_names(sets)) if self._is_by_name else _names_in_turn(sets)
        self._new_labels = list(self._number_by_name() if self._is_by_name else self._number_in_turn())

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image `index` and its label.

        Raises:
            IndexError: no such image.
            DataError: as the set it lies in.
        """
        number, inner = self._locate(index)
        encoded, label = self._sets[number][inner]
        if not 0 <= label < len(self._new_labels[number]):
            raise DataError(
                f"{self.describe(index)}: label {label}, but its set has {len(self._new_labels[number])} identities"
            )
        return encoded, int(self._new_labels[number][label])

    def will_need(self, indices: Int64s) -> None:
        """Tell each set that can fetch ahead which of its images are about to be read."""
        for ids, faces in zip(self._ranges, self._sets, strict=True):
            fetch = getattr(faces, "will_need", None)
            inner = indices[(indices >= ids.start) & (indices < ids.stop)] - ids.start
            if fetch is not None and len(inner):
                fetch(inner)

    @property
    def weighted_ranges(self) -> tuple[tuple[range, float], ...]:
        """The sample ids of each set, with its weight."""
        return tuple(zip(self._ranges, self._weights, strict=True))

    @property
    def is_streamed(self) -> bool:
        """Whether some set is slow to read in random order."""
        return any(is_streamed(faces) for faces in self._sets)

    @property
    def num_identities(self) -> int:
        """The largest label + 1."""
        return 1 + max(int(labels.max()) for labels in self._new_labels)

    @property
    def identity_names(self) -> tuple[str, ...] | None:
        """The name of each identity, by label, where all sets have names. Separate identities may share a name."""
        return self._names

    @cached_property
    def labels(self) -> Int64s:
        """int64 (N,), the label of every image.

        Raises:
            DataError: a set has labels beyond its number of identities.
        """
        labels = np.empty(len(self), dtype=np.int64)
        for number, (ids, _) in enumerate(self.weighted_ranges):
            new_labels, old = self._new_labels[number], self._sets[number].labels
            if old.min() < 0 or old.max() >= len(new_labels):
                raise DataError(
                    f"data set {number + 1}: labels {old.min()} to {old.max()}, but {len(new_labels)} identities"
                )
            np.take(new_labels, old, out=labels[ids.start : ids.stop], mode="clip")
        labels.flags.writeable = False
        return labels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the sets' fingerprints, sizes and weights and of the labels that their identities get."""
        if len(self._sets) == 1 and self._weights == (1.0,):
            return self._sets[0].fingerprint
        parts = [(faces.fingerprint, len(faces), faces.num_identities) for faces in self._sets]
        digest = hashlib.sha256(json.dumps([parts, self._weights]).encode())
        for new_labels in self._new_labels:
            digest.update(new_labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def describe(self, index: int) -> str:
        """Where image `index` lies, as its set says."""
        number, inner = self._locate(index)
        return self._sets[number].describe(inner)

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"no image {index}; the joined sets have {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _number_in_turn(self) -> Iterator[Int64s]:
        first = 0
        for faces in self._sets:
            yield np.arange(first, first + faces.num_identities, dtype=np.int64)
            first += faces.num_identities

    def _number_by_name(self) -> Iterator[Int64s]:
        label_of = {name: label for label, name in enumerate(self._names or ())}
        for faces in self._sets:
            yield np.array([label_of[name] for name in faces.identity_names or ()], dtype=np.int64)


def _check(sets: Sequence[FaceData], weights: Sequence[float], identities: str) -> None:
    if not sets:
        raise ConfigError("no data sets to join; name at least one")
    if len(weights) != len(sets):
        raise ConfigError(f"{len(sets)} data sets need as many weights, got {len(weights)}")
    if identities not in ("separate", "by_name"):
        raise ConfigError(f'identities must be "separate" or "by_name", got {identities!r}')
    for number, (faces, weight) in enumerate(zip(sets, weights, strict=True), 1):
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"the weight of data set {number} must be above 0, got {weight}")
        if not num_taken(len(faces), weight):
            raise ConfigError(
                f"weight {weight:g} of data set {number} takes none of its {len(faces)} images in an epoch; raise it"
            )


def _joint_names(sets: Sequence[FaceData]) -> dict[str, None]:
    joint: dict[str, None] = {}
    for number, faces in enumerate(sets, 1):
        where, names = f"data set {number} ({faces.describe(0)} …)", faces.identity_names
        if names is None:
            raise DataError(
                f'{where} has no identity names, so its identities cannot be joined by name; use identities "separate" '
                "or add its names"
            )
        if len(set(names)) < len(names):
            name = Counter(names).most_common(1)[0][0]
            raise DataError(f"{where} has the identity name {name!r} twice, so it cannot be joined by name")
        joint.update(dict.fromkeys(names))
    return joint


def _names_in_turn(sets: Sequence[FaceData]) -> tuple[str, ...] | None:
    names: list[str] = []
    for faces in sets:
        if faces.identity_names is None:
            return None
        names.extend(faces.identity_names)
    num_shared = len(names) - len(set(names)) if len(sets) > 1 else 0
    if num_shared:
        _log.warning(
            '%d identity names are in more than one data set, and are kept apart; identities "by_name" would join them',
            num_shared,
        )
    return tuple(names)
