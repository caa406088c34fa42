"""Drawn faces as face data: images come into being when they are asked for."""

from __future__ import annotations

import hashlib

from gkd.core.errors import ConfigError
from gkd.data.synthetic.faces import VERSION, check_drawing, encode_face
from gkd.data.synthetic.identity import generator


class SyntheticFaces:
    """Face data whose image i is picture i mod `images_per_identity` of person i div `images_per_identity`.

    Args:
        num_identities: how many people; their labels are 0, 1, 2 ….
        images_per_identity: pictures of each.
        seed: every face is a function of it.
        size: side of the pictures in pixels.
        first_identity: the number of the person with label 0; sets with separate ranges share nobody.
        difficulty: how far pose, light, expression and camera go.

    Raises:
        ConfigError: a number outside its range.
    """

    def __init__(
        self,
        *,
        num_identities: int = 300,
        images_per_identity: int = 30,
        seed: int = 0,
        size: int = 112,
        first_identity: int = 0,
        difficulty: float = 1.0,
    ) -> None:
        if num_identities < 1 or images_per_identity < 1:
            raise ConfigError(
                "synthetic faces: num_identities and images_per_identity must be at least 1, got "
                f"{num_identities} and {images_per_identity}"
            )
        check_drawing(size, difficulty)
        generator(seed, first_identity, first_identity + num_identities - 1, images_per_identity - 1)  # checks them
        self._num_identities = num_identities
        self._images_per_identity = images_per_identity
        self._seed = seed
        self._size = size
        self._first_identity = first_identity
        self._difficulty = difficulty

    @property
    def num_identities(self) -> int:
        """The largest label + 1."""
        return self._num_identities

    @property
    def identity_names(self) -> tuple[str, ...]:
        """The name of each identity, by label: its seed and number."""
        numbers = range(self._first_identity, self._first_identity + self._num_identities)
        return tuple(f"synthetic-{self._seed}-{number:06d}" for number in numbers)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the numbers that fix the set, not of its pixels: the same on every machine."""
        settings = (VERSION, self._seed, self._first_identity, len(self), self._num_identities)
        return hashlib.sha256(f"synthetic {settings} {self._size} {self._difficulty!r}".encode()).hexdigest()

    def __len__(self) -> int:
        return self._num_identities * self._images_per_identity

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The image as JPEG and its label."""
        label, image = self._place(index)
        return encode_face(self._seed, self._first_identity + label, image, self._size, self._difficulty), label

    def describe(self, index: int) -> str:
        """Which drawn face image `index` is, for messages."""
        label, image = self._place(index)
        return f"synthetic faces (seed {self._seed}): identity {self._first_identity + label}, image {image}"

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} synthetic faces")
        return divmod(index, self._images_per_identity)
