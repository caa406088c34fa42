"""The embeddings of pair sets, kept on disk, so that a second evaluation of a network decodes and runs nothing.

Shapes: N images, D embedding dimension.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from torch import nn

from gkd.core import distributed
from gkd.core.errors import ConfigError
from gkd.core.files import GIB
from gkd.evaluation import VerificationResult
from gkd.inference.embed import Pairs, Precision, embed_views, image_of_pair, on_first_rank, verify_views
from gkd.inference.kept_files import EmbeddingKey, read_kept, write_kept
from gkd.inference.network_digest import network_digest
from gkd.inference.views import Rows, View, needed_views
from gkd.models import InputSpec

logger = logging.getLogger(__name__)


def evaluate_pairs_kept(
    backbone: nn.Module,
    input_spec: InputSpec,
    pair_set: Pairs,
    *,
    folder: Path | None,
    max_bytes: int = 4 * GIB,
    flip: bool | str = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    name: str = "pair set",
) -> VerificationResult:
    """As `evaluate_pairs`, with the embeddings kept in `folder` and taken from there where they are there already.

    Args:
        folder, max_bytes: as in `kept_embeddings`.
    """

    def compute(views: tuple[View, ...]) -> dict[View, Rows]:
        return embed_views(
            backbone,
            input_spec,
            pair_set.images,
            views=views,
            batch_size=batch_size,
            device=device,
            precision=precision,
            describe=image_of_pair(name),
        )

    def make_key() -> EmbeddingKey:
        return EmbeddingKey(
            network=whole_network_digest(backbone),
            input=str(input_spec),
            images=images_digest(pair_set.images),
            num_images=len(pair_set.images),
            batch_size=batch_size,
            precision=precision,
            view="image",
            software=software(torch.device(device)),
        )

    views = kept_embeddings(folder, make_key, compute, views=needed_views(flip), max_bytes=max_bytes)
    return verify_views(views, pair_set.is_same, flip=flip, name=name)


def kept_embeddings(
    folder: Path | None,
    make_key: Callable[[], EmbeddingKey],
    compute: Callable[[tuple[View, ...]], dict[View, Rows]],
    *,
    views: tuple[View, ...],
    max_bytes: int = 4 * GIB,
) -> dict[View, Rows]:
    """Embeddings from `folder`, or from `compute` and then kept there.

    Rank 0 reads, checks and writes; the other ranks get what it read. A damaged file is made anew, with a warning;
    another says that embeddings cannot be kept. The files that have gone unused for longest make room for new ones.

    Args:
        folder: made where it is missing; None keeps nothing.
        make_key: what the embeddings depend on; the view in it does not matter. Called on rank 0.
        compute: the raw embeddings (N, D) of the views that it is given. Called on every rank, or on none.
        views: which are wanted.
        max_bytes: how much the kept files may take together.

    Raises:
        ConfigError: `max_bytes` is not positive. Beside that, what `make_key` and `compute` raise.
    """
    if folder is None:
        return compute(views)
    if max_bytes < 1:
        raise ConfigError(f"kept embeddings: max_bytes must be at least 1, got {max_bytes}")
    keys: dict[View, EmbeddingKey] = {}
    on_first_rank(lambda: keys.update(_keys(make_key(), views)))
    found: dict[View, Rows] = {}
    on_first_rank(lambda: found.update(_read_all(folder, keys)))
    found = distributed.broadcast_object(found)
    missing = tuple(view for view in views if view not in found)
    computed = compute(missing) if missing else {}
    on_first_rank(lambda: write_kept(folder, {keys[view]: rows for view, rows in computed.items()}, max_bytes))
    both = {**found, **computed}
    return {view: both[view] for view in views}


def whole_network_digest(backbone: nn.Module) -> str:
    """SHA-256 (hex) of a network's weights and of what its modules say of themselves: equal weights may be used in
    networks of other strides or sizes.
    """
    kind = f"{type(backbone).__module__}.{type(backbone).__qualname__} {backbone.input_size}\n{backbone!r}"
    return hashlib.sha256(f"{network_digest(backbone)}\n{kind}".encode()).hexdigest()


def images_digest(images: Iterable[bytes]) -> str:
    """SHA-256 (hex) of encoded images in their order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()


def software(device: torch.device) -> str:
    """What decodes and computes on `device`."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"torch {torch.__version__}, opencv {cv2.__version__}, {where}"


def _keys(key: EmbeddingKey, views: tuple[View, ...]) -> dict[View, EmbeddingKey]:
    return {view: replace(key, view=view) for view in views}


def _read_all(folder: Path, keys: dict[View, EmbeddingKey]) -> dict[View, Rows]:
    found: dict[View, Rows] = {}
    for view, key in keys.items():
        rows = read_kept(folder, key)
        if rows is not None:
            found[view] = rows
    if found:
        logger.info("embeddings of %s are taken from %s", " and ".join(found), folder)
    return found
