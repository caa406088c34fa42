"""Class weights for a teacher that came without any: the mean embedding of each identity.

centre_c = unit(sum over the images of class c of unit(f(x)) + unit(f(mirror x)))

Source: class means as classifier weights are common practice (nearest class mean; prototypes). The same pass shows
label noise: images far from their own centre, and centres that lie close together.

Shapes: n images, C classes, D embedding dimension.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import ConfigError
from gkd.data import FaceData
from gkd.inference.embed import on_first_rank
from gkd.inference.embedding_files import BLOCK_SIZE
from gkd.inference.embedding_store import EmbeddingStore, find_embeddings, held_by_first_rank
from gkd.inference.label_noise import report_label_noise
from gkd.models import InputSpec, load_head, save_head

logger = logging.getLogger(__name__)

_OWNER = "teacher.centres.folder"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassCentres:
    """Unit class centres (C, D), fp32, and the embeddings that they are the means of."""

    weights: Tensor
    store: EmbeddingStore


def find_class_centres(
    folder: Path,
    backbone: nn.Module,
    input_spec: InputSpec,
    dataset: FaceData,
    *,
    device: torch.device,
    min_cosine: float | None = None,
    dtype: Literal["float16", "bfloat16"] = "float16",
    precision: Literal["fp32", "bf16"] = "fp32",
    is_skipping: bool = False,
) -> ClassCentres:
    """The class centres of `dataset` under a network: those in `folder`, or computed into it now by all ranks.

    Args:
        folder: where embeddings, centres and the report of label noise are kept; an interrupted pass is taken up.
        min_cosine: leave out images whose cosine to the centre of the other images of their class is lower. A class
            keeps all its images where none would be left.
        The others are as in `find_embeddings`.

    Raises:
        As `find_embeddings`.
    """
    if min_cosine is not None and not -1 <= min_cosine < 1:
        raise ConfigError(f"teacher.centres.min_cosine must lie in [-1, 1), got {min_cosine}")
    store = find_embeddings(
        folder,
        backbone,
        input_spec,
        dataset,
        device=device,
        dtype=dtype,
        precision=precision,
        is_skipping=is_skipping,
        owner=_OWNER,
    )
    path = folder / ("centres.pt" if min_cosine is None else f"centres_min{min_cosine:g}.pt")
    if not distributed.broadcast_object(path.exists()):
        with held_by_first_rank(folder, _OWNER):
            on_first_rank(lambda: _write(path, store, dataset, min_cosine))
    weights, _ = load_head(path)
    return ClassCentres(weights, store)


def class_sums(store: EmbeddingStore, num_classes: int, is_used: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The sums (C, D) of both views of the images that are used, and of how many images each (C,) is."""
    sums = torch.zeros(num_classes, store.origin.embedding_dim, dtype=torch.float64)
    counts = np.zeros(num_classes)
    for rows in image_blocks(store):
        used = is_used[rows]
        labels = torch.from_numpy(store.labels[rows][used].astype(np.int64))
        sums.index_add_(0, labels, torch.from_numpy(image_sums(store, rows)[used]))
        counts += np.bincount(labels.numpy(), minlength=num_classes)
    return sums.numpy(), counts


def image_blocks(store: EmbeddingStore) -> list[slice]:
    """Slices that together cover the images of `store`."""
    return [slice(start, start + BLOCK_SIZE) for start in range(0, store.origin.num_images, BLOCK_SIZE)]


def image_sums(store: EmbeddingStore, rows: slice) -> Floats:
    """The sum of the unit embeddings of each image and its mirror image, (n, D)."""
    sums: Floats = store.views(rows).astype(np.float64).sum(axis=1)
    return sums


def own_cosines(store: EmbeddingStore, sums: Floats, counts: Floats, is_used: npt.NDArray[np.bool_]) -> Floats:
    """The cosine (n,) of each image to the centre of the other images of its class; NaN where there is no other."""
    cosines = np.full(store.origin.num_images, np.nan)
    for rows in image_blocks(store):
        own = image_sums(store, rows)
        labels = store.labels[rows]
        others = sums[labels] - own * is_used[rows][:, None]
        length = np.linalg.norm(own, axis=1) * np.linalg.norm(others, axis=1)
        has_others = counts[labels] > is_used[rows]
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines[rows] = np.where(has_others, np.einsum("nd,nd->n", own, others) / length, np.nan)
    return cosines


def _write(path: Path, store: EmbeddingStore, dataset: FaceData, min_cosine: float | None) -> None:
    """Average, report label noise, and write the centres last."""
    is_used = store.has_embedding()
    sums, counts = class_sums(store, dataset.num_identities, is_used)
    cosines = own_cosines(store, sums, counts, is_used)
    if min_cosine is not None:
        is_used = _without_outliers(store, cosines, counts, is_used, min_cosine)
        sums, counts = class_sums(store, dataset.num_identities, is_used)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    centres = np.divide(sums, length, out=np.zeros_like(sums), where=length > 0)
    report_label_noise(path.parent, store, dataset, centres, cosines, is_used)
    empty = int((counts == 0).sum())
    if empty:
        logger.warning("%s: %d classes have no usable image; their class weights are zero", path, empty)
    save_head(path, torch.from_numpy(centres).float(), _meta(store, dataset, min_cosine, int(is_used.sum())))


def _without_outliers(
    store: EmbeddingStore, cosines: Floats, counts: Floats, is_used: npt.NDArray[np.bool_], min_cosine: float
) -> npt.NDArray[np.bool_]:
    is_kept = is_used & ~(cosines < min_cosine)
    kept_counts = np.bincount(store.labels[is_kept], minlength=len(counts))
    kept: npt.NDArray[np.bool_] = is_kept | (is_used & (kept_counts[store.labels] == 0))
    return kept


def _meta(store: EmbeddingStore, dataset: FaceData, min_cosine: float | None, num_used: int) -> dict[str, Any]:
    names = dataset.identity_names
    return {
        "num_classes": dataset.num_identities,
        "fingerprint": dataset.fingerprint,
        "identity_names": None if names is None else list(names),
        "network": store.origin.network,
        "input": store.origin.input,
        "min_cosine": min_cosine,
        "num_images": num_used,
    }
