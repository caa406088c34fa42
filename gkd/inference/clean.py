"""Label noise found by class centres, by one rule for all images.

cosine_i = cos(e_i, sum of e_j over the other kept images j of the class of i),   e = unit(f(x)) + unit(f(mirror x))

An image is noise where this is below a threshold (a stranger to its class), or where another class's centre is closer
by a margin (a wrong label). Wrong images pull their class's centre, so it is found anew without them, a few times.

Source: nearest class mean, as class_centres.py. Each round judges all images, so one left out may come back.

Shapes: n images, C classes, D embedding dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gkd.core.errors import CheckpointError, ConfigError
from gkd.data.identities import Faces
from gkd.inference.class_centres import class_sums, own_cosines
from gkd.inference.embedding_files import STORE_FILE, read_origin
from gkd.inference.embedding_store import EmbeddingStore
from gkd.inference.label_noise import NEAR_COSINE, nearest_other
from gkd.inference.noise_list import image_rows, write_csv

_MAX_STORE_BYTES = 1 << 20
_BLOCK = 1 << 14

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NoiseRule:
    """What counts as label noise.

    Args:
        min_cosine: images whose cosine to the rest of their class is lower; None: none for that.
        margin: images whose cosine to the nearest other class's centre is larger than that to the rest of their own by
            more than this; None: none for that. Classes whose centres are as close as `NEAR_COSINE` are taken for one
            person under two labels, and do not count as another.
        rounds: how often at most the centres are found without what the round before called noise.

    Raises:
        ConfigError: a number out of its range.
    """

    min_cosine: float | None = None
    margin: float | None = None
    rounds: int = 3

    def __post_init__(self) -> None:
        if self.min_cosine is not None and not -1 <= self.min_cosine < 1:
            raise ConfigError(f"--min-cosine must lie in [-1, 1), got {self.min_cosine}")
        if self.margin is not None and not 0 <= self.margin < 2:
            raise ConfigError(f"--margin must lie in [0, 2), got {self.margin}")
        if self.rounds < 1:
            raise ConfigError(f"--rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True)
class Findings:
    """What a rule found, by image (n,).

    own_cosines: to the kept images of the class, itself left out; NaN where there is none to compare with.
    is_unreadable: has no embedding, since it could not be read. centres: (C, D), unit length, of the kept images.
    num_by_round: how many images each round called noise; the last has the word.
    """

    own_cosines: Floats
    is_unreadable: Bools
    is_outlier: Bools
    is_mislabelled: Bools
    centres: Floats
    num_by_round: tuple[int, ...]

    @property
    def is_noise(self) -> Bools:
        """Which images are left out."""
        return self.is_unreadable | self.is_outlier | self.is_mislabelled


def open_embeddings(folder: Path, faces: Faces) -> EmbeddingStore:
    """The finished embeddings of exactly these data.

    Raises:
        CheckpointError: none there, unfinished, damaged, or of other data.
    """
    if not (folder / STORE_FILE).exists():
        raise CheckpointError(
            f"{folder}: holds no embeddings ({STORE_FILE} is missing); make them with `prepare.py centres`, and "
            "give the folder that the config's teacher.centres names"
        )
    origin = read_origin(folder)
    if origin.data != faces.fingerprint:
        raise CheckpointError(
            f"{folder}: holds embeddings of other data: their fingerprint is {origin.data[:80]}, that of {faces.path} "
            f"is {faces.fingerprint}; give the data that they were made from, or make those of {faces.path} with "
            "`prepare.py centres`"
        )
    if origin.num_images != len(faces):
        raise CheckpointError(
            f"{folder}: damaged: {STORE_FILE} speaks of {origin.num_images} images, and {faces.path} has {len(faces)}; "
            "make the embeddings anew"
        )
    store = EmbeddingStore(folder, origin)
    if not store.is_complete:
        raise CheckpointError(f"{folder}: its embeddings are not finished; run `prepare.py centres` again to go on")
    # The fingerprint is of a thousand images; labels are cheap to compare in full. -1: could not be read then.
    wrong = np.flatnonzero((store.labels != faces.labels) & (store.labels >= 0))
    if len(wrong):
        raise CheckpointError(
            f"{faces.describe(int(wrong[0]))}: has label {faces.labels[wrong[0]]}, but {store.labels[wrong[0]]} in "
            f"{folder}; the labels changed since: make the embeddings anew"
        )
    return store


def find_noise(
    store: EmbeddingStore, num_classes: int, rule: NoiseRule, *, device: torch.device | None = None
) -> Findings:
    """Judge all images by `rule`.

    Args:
        device: where images are compared with all centres, if `rule` has a margin.
    """
    is_readable = store.has_embedding()
    is_used, num_by_round = is_readable, []
    for _ in range(rule.rounds):
        sums, counts = class_sums(store, num_classes, is_used)
        cosines = own_cosines(store, sums, counts, is_used)
        is_outlier = np.zeros_like(is_used) if rule.min_cosine is None else cosines < rule.min_cosine
        centres = _unit(sums)
        is_mislabelled = np.zeros_like(is_used)
        if rule.margin is not None:
            known = np.flatnonzero(~np.isnan(cosines))
            is_mislabelled[_nearer_elsewhere(store, centres, cosines, known, rule.margin, device)] = True
        num_by_round.append(int((is_outlier | is_mislabelled).sum()))
        kept = _with_emptied(store, is_readable & ~is_outlier & ~is_mislabelled, is_readable, num_classes)
        if np.array_equal(kept, is_used):
            break
        is_used = kept
    return Findings(cosines, ~is_readable, is_outlier, is_mislabelled, centres, tuple(num_by_round))


def write_left_out(
    path: Path, faces: Faces, store: EmbeddingStore, findings: Findings, images: Ints, *, device: torch.device | None
) -> None:
    """List `images` in a table that `read_image_list` takes, with the class that each is nearest to."""
    nearest, cosines = np.full(len(images), -1, dtype=np.int64), np.full(len(images), -np.inf)
    known = ~findings.is_unreadable[images]
    nearest[known], cosines[known] = nearest_other(store, findings.centres, images[known], device=device)
    is_used = ~findings.is_noise
    write_csv(path, image_rows(faces, faces.labels, images, findings.own_cosines, nearest, cosines, is_used))


def _nearer_elsewhere(
    store: EmbeddingStore, centres: Floats, cosines: Floats, images: Ints, margin: float, device: torch.device | None
) -> Ints:
    """Those of `images` that are nearer by `margin` to another class which is not their own under another label."""
    nearest, nearest_cosines = nearest_other(store, centres, images, device=device)
    is_nearer = nearest_cosines - cosines[images] > margin
    suspects, others = images[is_nearer], nearest[is_nearer]
    is_other = np.ones(len(suspects), dtype=bool)
    for start in range(0, len(suspects), _BLOCK):
        own = centres[store.labels[suspects[start : start + _BLOCK]]]
        likeness = np.einsum("nd,nd->n", own, centres[others[start : start + _BLOCK]])
        is_other[start : start + _BLOCK] = likeness < NEAR_COSINE
    return suspects[is_other]


def _with_emptied(store: EmbeddingStore, is_kept: Bools, is_readable: Bools, num_classes: int) -> Bools:
    """`is_kept`, and all readable images of classes that keep none, which would be without a centre."""
    counts = np.bincount(store.labels[is_kept], minlength=num_classes)
    kept: Bools = is_kept | (is_readable & (counts[np.maximum(store.labels, 0)] == 0))
    return kept


def _unit(sums: Floats) -> Floats:
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    centres: Floats = np.divide(sums, length, out=np.zeros_like(sums), where=length > 0)
    return centres
