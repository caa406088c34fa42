"""What training reads: encoded face images, each with the number of its identity."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import numpy.typing as npt

_MAX_HASHED_IMAGES = 1024


class FaceData(Protocol):
    """A set of encoded face images. Sample id i is the image's place in the set."""

    @property
    def num_identities(self) -> int:
        """The largest label + 1."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label of every image, (N,), without reading the images. Not to be written to."""

    @property
    def identity_names(self) -> tuple[str, ...] | None:
        """The name of each identity, by label, where names are known."""

    @property
    def fingerprint(self) -> str:
        """See `fingerprint_of`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its label."""

    def describe(self, index: int) -> str:
        """Where image `index` lies, for messages."""


def is_streamed(data: FaceData) -> bool:
    """Whether images are cheap to read only in the order in which they lie, as those of tar shards."""
    return bool(getattr(data, "is_streamed", False))


def fingerprint_of(data: FaceData) -> str:
    """SHA-256 (hex) over the counts and up to 1024 evenly spaced images with their labels.

    It does not depend on the container: a folder and the .rec packed from it have the same fingerprint.
    """
    num_images = len(data)
    num_hashed = min(num_images, _MAX_HASHED_IMAGES)
    digest = hashlib.sha256(f"{num_images} {data.num_identities}\n".encode())
    for step in range(num_hashed):
        index = step * num_images // num_hashed
        encoded, label = data[index]
        digest.update(f"{index} {label} {hashlib.sha256(encoded).hexdigest()}\n".encode())
    return digest.hexdigest()
