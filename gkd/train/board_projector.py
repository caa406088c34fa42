"""Embeddings of some training images for TensorBoard's projector, anew at every evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gkd.core import distributed
from gkd.core.errors import GkdError
from gkd.core.files import atomic_write
from gkd.data import FaceData
from gkd.data.face_data import is_streamed
from gkd.inference.embed import embed_images
from gkd.models import InputSpec

logger = logging.getLogger(__name__)

CONFIG_FILE = "projector_config.pbtxt"
EMBEDDINGS_FILE = "embeddings.tsv"
LABELS_FILE = "embedding_labels.tsv"

_CONFIG = f"""embeddings {{
  tensor_name: "student embeddings"
  tensor_path: "{EMBEDDINGS_FILE}"
  metadata_path: "{LABELS_FILE}"
}}
"""
_IMAGES_AN_IDENTITY = 8
_MAX_NAME_LENGTH = 80


class Projector:
    """Shows the embeddings of the same training images at every evaluation; the newest replace the ones before.

    The images themselves are not shown. What goes wrong is warned of once and costs nothing else.

    Args:
        folder: that of the event files.
        num_samples: how many images; 0 for none. The first 8 of as many identities as that takes; over data that are
            streamed, simply the first images.
    """

    def __init__(self, folder: Path, dataset: FaceData, num_samples: int) -> None:
        self._folder = folder
        self._dataset = dataset
        self._samples = fixed_samples(dataset, num_samples)

    def show(self, backbone: nn.Module, input_spec: InputSpec, batch_size: int, device: torch.device) -> None:
        """Embed the images and write the files. Every rank must call it."""
        if not self._samples:
            return
        images = _Images(self._dataset, self._samples)
        try:
            embeddings = embed_images(
                backbone, input_spec, images, batch_size=batch_size, flip=False, device=device, describe=images.describe
            )
        except GkdError as error:  # the same on every rank
            self._give_up(error)
            return
        if distributed.rank() == 0:
            try:
                self._write(embeddings)
            except OSError as error:
                logger.warning("the embeddings for TensorBoard's projector cannot be written: %s", error)

    def _give_up(self, error: GkdError) -> None:
        self._samples = []
        logger.warning("no embeddings for TensorBoard's projector from now on: %s", error)

    def _write(self, embeddings: npt.NDArray[np.float32]) -> None:
        names, labels = self._dataset.identity_names, self._dataset.labels
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        rows = embeddings / np.maximum(lengths, 1e-12)
        about = ["label\tname\tsample_id"]
        for sample in self._samples:
            label = int(labels[sample])
            about.append(f"{label}\t{label if names is None else _one_cell(names[label])}\t{sample}")
        _write(self._folder / EMBEDDINGS_FILE, ["\t".join(f"{value:.5f}" for value in row) for row in rows])
        _write(self._folder / LABELS_FILE, about)
        _write(self._folder / CONFIG_FILE, [_CONFIG])


def fixed_samples(dataset: FaceData, num_wanted: int) -> list[int]:
    """The first 8 images of each identity, by label, up to `num_wanted`; then whatever comes first."""
    num_images = len(dataset)
    num_wanted = min(num_wanted, num_images)
    if num_wanted == 0:
        return []
    if is_streamed(dataset):
        return list(range(num_wanted))
    order = np.argsort(dataset.labels, kind="stable")
    sorted_labels = dataset.labels[order]
    starts = np.flatnonzero(np.r_[True, sorted_labels[1:] != sorted_labels[:-1]])
    place = np.arange(num_images) - np.repeat(starts, np.diff(np.r_[starts, num_images]))
    few = place < _IMAGES_AN_IDENTITY
    chosen: list[int] = np.r_[order[few], order[~few]][:num_wanted].tolist()
    return chosen


class _Images(Sequence[bytes]):
    """Some images of a set, each read when it is asked for: a failure to read one is then told to all ranks."""

    def __init__(self, dataset: FaceData, samples: Sequence[int]) -> None:
        self._dataset = dataset
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self._dataset[sample][0] for sample in self._samples[index]]
        return self._dataset[self._samples[index]][0]

    def describe(self, index: int) -> str:
        return self._dataset.describe(self._samples[index])


def _write(path: Path, lines: Sequence[str]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _one_cell(name: str) -> str:
    """A name without what would end its cell."""
    return " ".join(name.split())[:_MAX_NAME_LENGTH]
