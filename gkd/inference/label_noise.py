"""What class centres tell of the labels: images that look like nobody of their class, classes that look like one.

<folder>/label_noise.csv    the images farthest from the centre of their class's other images, worst first
<folder>/near_centres.csv   pairs of classes whose centres are close: perhaps one person under two labels
<folder>/label_noise.json   the counts, and how the cosines are spread

Shapes: n images, C classes, D embedding dimension.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gkd.core.files import atomic_write
from gkd.data import FaceData
from gkd.inference.embedding_store import EmbeddingStore

logger = logging.getLogger(__name__)

NEAR_COSINE = 0.7  # for cosines of 0.6 between images of a person, two means of ten images of one person are at 0.94
WORST_SHARE = 0.01
MOST_LISTED = 20_000
_FEWEST_LISTED = 20
_RANK1_SAMPLES = 20_000
_BLOCK = 1024
_QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75)

_IMAGE_COLUMNS = (
    "sample_id",
    "where",
    "label",
    "identity",
    "own_cosine",
    "nearest_label",
    "nearest_identity",
    "nearest_cosine",
    "used",
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def report_label_noise(
    folder: Path,
    store: EmbeddingStore,
    dataset: FaceData,
    centres: Floats,
    own_cosines: Floats,
    is_used: npt.NDArray[np.bool_],
) -> None:
    """Write the three files and log a summary.

    Args:
        centres: (C, D), unit length.
        own_cosines: (n,), of each image to the centre of its class's other images; NaN where there is none.
        is_used: (n,), which images went into the centres.
    """
    known = np.flatnonzero(~np.isnan(own_cosines))
    quantiles = np.quantile(own_cosines[known], _QUANTILES) if len(known) else np.full(len(_QUANTILES), np.nan)
    num_listed = min(max(_FEWEST_LISTED, int(WORST_SHARE * len(known))), MOST_LISTED, len(known))
    worst = known[np.argsort(own_cosines[known], kind="stable")[:num_listed]]
    nearest, nearest_cosines = nearest_other(store, centres, worst)
    is_suspect = nearest_cosines > own_cosines[worst]
    rows = _image_rows(dataset, store, worst, own_cosines, nearest, nearest_cosines, is_used)
    _write_csv(folder / "label_noise.csv", rows)
    pairs = list(near_pairs(centres))
    _write_csv(folder / "near_centres.csv", _pair_rows(dataset, pairs))
    rank1, num_checked = _rank1(store, centres)
    summary = {
        "num_images": len(own_cosines),
        "num_left_out": int((~is_used).sum()),
        "num_listed": int(num_listed),
        "num_nearer_to_another_class": int(is_suspect.sum()),
        "num_near_pairs": len(pairs),
        "rank1": rank1,
        "rank1_images": num_checked,
        "own_cosine_quantiles": {
            str(share): float(value) for share, value in zip(_QUANTILES, quantiles, strict=True) if np.isfinite(value)
        },
    }
    with atomic_write(folder / "label_noise.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    logger.info(
        "class centres: rank-1 %.4f on %d training images; %d images left out; of the %d farthest from their class %d "
        "are nearer to another class; %d pairs of classes closer than %.1f (%s)",
        rank1,
        num_checked,
        summary["num_left_out"],
        num_listed,
        summary["num_nearer_to_another_class"],
        len(pairs),
        NEAR_COSINE,
        folder / "label_noise.csv",
    )


def nearest_other(store: EmbeddingStore, centres: Floats, images: Ints) -> tuple[Ints, Floats]:
    """The class nearest to each of `images` beside its own, and the cosine to its centre."""
    weights = torch.from_numpy(centres).float()
    labels, cosines = np.full(len(images), -1, dtype=np.int64), np.full(len(images), -np.inf)
    for start in range(0, len(images) if len(centres) > 1 else 0, _BLOCK):
        chosen = images[start : start + _BLOCK]
        scores = _scores(store, chosen, weights)
        scores[torch.arange(len(chosen)), torch.from_numpy(store.labels[chosen].astype(np.int64))] = -torch.inf
        best, place = scores.max(dim=1)
        labels[start : start + _BLOCK], cosines[start : start + _BLOCK] = place.numpy(), best.numpy()
    return labels, cosines


def near_pairs(centres: Floats) -> Iterator[tuple[int, int, float]]:
    """Pairs of classes whose centres have a cosine of at least `NEAR_COSINE`, the lower label first."""
    weights = torch.from_numpy(centres).float()
    for start in range(0, len(weights), _BLOCK):
        cosines = weights[start : start + _BLOCK] @ weights[start:].T
        rows, columns = torch.nonzero((cosines >= NEAR_COSINE).triu(1), as_tuple=True)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            yield start + row, start + column, float(cosines[row, column])


def _rank1(store: EmbeddingStore, centres: Floats) -> tuple[float, int]:
    """The share of evenly spaced images whose nearest centre is that of their own class, and their number."""
    num_images = store.origin.num_images
    images = np.unique(np.linspace(0, num_images - 1, min(_RANK1_SAMPLES, num_images)).astype(np.int64))
    images = images[~np.isnan(store.embeddings[images, 0, 0])]
    weights = torch.from_numpy(centres).float()
    num_right = 0
    for start in range(0, len(images), _BLOCK):
        chosen = images[start : start + _BLOCK]
        num_right += int((_scores(store, chosen, weights).argmax(1).numpy() == store.labels[chosen]).sum())
    return num_right / max(1, len(images)), len(images)


def _scores(store: EmbeddingStore, images: Ints, weights: torch.Tensor) -> torch.Tensor:
    """Cosines (N, C) of images, not mirrored, to the centres."""
    return torch.from_numpy(store.embeddings[images, 0].astype(np.float32)) @ weights.T


def _image_rows(
    dataset: FaceData,
    store: EmbeddingStore,
    worst: Ints,
    own_cosines: Floats,
    nearest: Ints,
    nearest_cosines: Floats,
    is_used: npt.NDArray[np.bool_],
) -> Iterator[tuple[Any, ...]]:
    yield _IMAGE_COLUMNS
    for place, image in enumerate(worst.tolist()):
        label, other = int(store.labels[image]), int(nearest[place])
        own, theirs = f"{own_cosines[image]:.4f}", f"{nearest_cosines[place]:.4f}"
        where = dataset.describe(image)
        yield image, where, label, _name(dataset, label), own, other, _name(dataset, other), theirs, int(is_used[image])


def _pair_rows(dataset: FaceData, pairs: Iterable[tuple[int, int, float]]) -> Iterator[tuple[Any, ...]]:
    yield "label", "identity", "other_label", "other_identity", "cosine"
    for label, other, cosine in sorted(pairs, key=lambda pair: -pair[2]):
        yield label, _name(dataset, label), other, _name(dataset, other), f"{cosine:.4f}"


def _name(dataset: FaceData, label: int) -> str:
    names = dataset.identity_names
    return names[label] if names is not None and label >= 0 else ""


def _write_csv(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
