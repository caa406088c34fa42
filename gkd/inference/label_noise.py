"""What class centres tell of the labels: images that look like nobody of their class, classes that look like one.

<folder>/label_noise.csv    the images farthest from the centre of their class's other images, worst first
<folder>/near_centres.csv   pairs of classes whose centres are close: perhaps one person under two labels
<folder>/label_noise.json   the counts, and how the cosines are spread

Shapes: n images, N of a block, C classes, D embedding dimension.
"""

from __future__ import annotations

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
from gkd.inference.noise_list import identity_name, image_rows, write_csv

logger = logging.getLogger(__name__)

NEAR_COSINE = 0.7  # for cosines of 0.6 between images of a person, two means of ten images of one person are at 0.94
THRESHOLDS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)  # what to think about as `min_cosine`
WORST_SHARE = 0.01
MOST_LISTED = 20_000
_FEWEST_LISTED = 20
_RANK1_SAMPLES = 20_000
_BLOCK = 1024
_CLASS_BLOCK = 1 << 17
_QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75)
_NUM_BARS = 40

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
    num_listed = min(max(_FEWEST_LISTED, int(WORST_SHARE * len(known))), MOST_LISTED, len(known))
    worst = known[np.argsort(own_cosines[known], kind="stable")[:num_listed]]
    nearest, nearest_cosines = nearest_other(store, centres, worst)
    is_suspect = nearest_cosines > own_cosines[worst]
    rows = image_rows(dataset, store.labels, worst, own_cosines, nearest, nearest_cosines, is_used)
    write_csv(folder / "label_noise.csv", rows)
    pairs = list(near_pairs(centres))
    write_csv(folder / "near_centres.csv", _pair_rows(dataset, pairs))
    rank1, num_checked = _rank1(store, centres)
    summary = {
        "num_images": len(own_cosines),
        "num_left_out": int((~is_used).sum()),
        "num_listed": int(num_listed),
        "num_nearer_to_another_class": int(is_suspect.sum()),
        "num_near_pairs": len(pairs),
        "rank1": rank1,
        "rank1_images": num_checked,
        **spread_of(own_cosines),
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


def spread_of(own_cosines: Floats) -> dict[str, Any]:
    """Quantiles, a histogram over [-1, 1] and the numbers below some thresholds, of the cosines that are known."""
    known = own_cosines[~np.isnan(own_cosines)]
    quantiles = np.quantile(known, _QUANTILES).tolist() if len(known) else []
    # Rounding may put a cosine just above 1, which a histogram would not count.
    counts, edges = np.histogram(np.clip(known, -1, 1), bins=_NUM_BARS, range=(-1, 1))
    return {
        "own_cosine_quantiles": {str(share): value for share, value in zip(_QUANTILES, quantiles, strict=False)},
        "own_cosine_histogram": {"edges": np.round(edges, 4).tolist(), "counts": counts.tolist()},
        "num_below": {str(threshold): int((known < threshold).sum()) for threshold in THRESHOLDS},
    }


def nearest_other(
    store: EmbeddingStore, centres: Floats, images: Ints, *, device: torch.device | None = None
) -> tuple[Ints, Floats]:
    """The class nearest to each of `images` beside its own, and the cosine of both its views' sum to that centre.

    Where there is no other class, the label is -1 and the cosine -inf.

    Args:
        device: where N x C products are computed; the CPU by default.
    """
    weights = torch.from_numpy(centres).to(device or torch.device("cpu"), torch.float32)
    labels, cosines = np.full(len(images), -1, dtype=np.int64), np.full(len(images), -np.inf)
    for start in range(0, len(images) if len(centres) > 1 else 0, _BLOCK):
        chosen = images[start : start + _BLOCK]
        own = torch.from_numpy(store.labels[chosen].astype(np.int64)).to(weights.device)
        best, place = _best_other(_both_views(store, chosen).to(weights.device), own, weights)
        labels[start : start + _BLOCK], cosines[start : start + _BLOCK] = place.cpu().numpy(), best.cpu().numpy()
    return labels, cosines


def near_pairs(centres: Floats) -> Iterator[tuple[int, int, float]]:
    """Pairs of classes whose centres have a cosine of at least `NEAR_COSINE`, the lower label first."""
    weights = torch.from_numpy(centres).float()
    for start in range(0, len(weights), _BLOCK):
        cosines = weights[start : start + _BLOCK] @ weights[start:].T
        rows, columns = torch.nonzero((cosines >= NEAR_COSINE).triu(1), as_tuple=True)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            yield start + row, start + column, float(cosines[row, column])


def _best_other(
    embeddings: torch.Tensor, own: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest cosine (N,) to a centre of another class, and its label."""
    best = torch.full((len(embeddings),), -torch.inf, device=weights.device)
    place = torch.full((len(embeddings),), -1, dtype=torch.int64, device=weights.device)
    for start in range(0, len(weights), _CLASS_BLOCK):
        scores = embeddings @ weights[start : start + _CLASS_BLOCK].T
        is_here = (own >= start) & (own < start + scores.shape[1])
        scores[is_here, own[is_here] - start] = -torch.inf
        value, column = scores.max(dim=1)
        place = torch.where(value > best, column + start, place)
        best = torch.maximum(best, value)
    return best, place


def _rank1(store: EmbeddingStore, centres: Floats) -> tuple[float, int]:
    """The share of evenly spaced images whose nearest centre is that of their own class, and their number."""
    num_images = store.origin.num_images
    images = np.unique(np.linspace(0, num_images - 1, min(_RANK1_SAMPLES, num_images)).astype(np.int64))
    images = images[store.has_embedding()[images]]
    weights = torch.from_numpy(centres).float()
    num_right = 0
    for start in range(0, len(images), _BLOCK):
        chosen = images[start : start + _BLOCK]
        num_right += int(((_view(store, chosen, False) @ weights.T).argmax(1).numpy() == store.labels[chosen]).sum())
    return num_right / max(1, len(images)), len(images)


def _view(store: EmbeddingStore, images: Ints, is_mirrored: bool) -> torch.Tensor:
    """Unit embeddings (N, D) of images, or of their mirror images."""
    return store.lookup(torch.from_numpy(images), torch.full((len(images),), is_mirrored))


def _both_views(store: EmbeddingStore, images: Ints) -> torch.Tensor:
    """The unit sums (N, D) of the embeddings of images and their mirror images."""
    return torch.nn.functional.normalize(_view(store, images, False) + _view(store, images, True), dim=1)


def _pair_rows(dataset: FaceData, pairs: Iterable[tuple[int, int, float]]) -> Iterator[tuple[Any, ...]]:
    yield "label", "identity", "other_label", "other_identity", "cosine"
    for label, other, cosine in sorted(pairs, key=lambda pair: -pair[2]):
        yield label, identity_name(dataset, label), other, identity_name(dataset, other), f"{cosine:.4f}"
