"""Face data of labels alone, for the tests of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gkd.data.sampling.order import Int64s


@dataclass
class Labelled:
    """Face data whose image i is a few bytes that say so."""

    given: Sequence[int]
    identity_names: tuple[str, ...] | None = None
    name: str = "faces"

    def __post_init__(self) -> None:
        self.labels: Int64s = np.asarray(self.given, dtype=np.int64)
        self.num_identities = int(self.labels.max()) + 1
        self.fingerprint = f"{self.name} {self.given}"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return f"{self.name} {index}".encode(), int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"{self.name}: image {index}"


def many(num_identities: int, per_identity: int) -> Labelled:
    """As many images of each identity, sorted by identity."""
    return Labelled([label for label in range(num_identities) for _ in range(per_identity)])


def uneven(seed: int, num_identities: int, most: int) -> Labelled:
    """1 to `most` images an identity, in no order."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_identities), random.integers(1, most + 1, num_identities))
    return Labelled(random.permutation(labels).tolist())
