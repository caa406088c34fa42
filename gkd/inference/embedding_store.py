"""The embeddings of a whole data set, computed once by all ranks, kept on disk, and read by sample id.

Shapes: n images of the data set, N of a batch, D embedding dimension.
"""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import ConfigError, DataError
from gkd.data import FaceData
from gkd.data.face_data import is_streamed
from gkd.inference.embed import on_first_rank
from gkd.inference.embedding_files import (
    DTYPES,
    STORE_FILE,
    Origin,
    check_origin,
    free_bytes,
    hold_store,
    make_files,
    map_file,
    missing_bytes,
    origin_of,
    require_free_space,
    size_text,
    store_bytes,
)
from gkd.inference.embedding_filling import fill_blocks
from gkd.models import InputSpec

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_SLOW_ROW_SECONDS = 3e-6  # one that is in memory takes a third of it, one from a disk three times as much or more


class EmbeddingStore:
    """Embeddings of every image and mirror image of a data set, in a folder.

    Args:
        folder: made where it is missing.
        origin: what the embeddings are to belong to.
        owner: the setting that names the folder, for messages.

    Raises:
        CheckpointError: the folder holds embeddings of another origin, or is damaged. DataError: it cannot be written,
            or the disk is too small. GkdError: another process is filling it.
    """

    def __init__(self, folder: Path, origin: Origin, owner: str = "teacher.cache.folder") -> None:
        self.folder = folder
        self.origin = origin
        self.owner = owner
        self._is_slow = False
        on_first_rank(self._prepare)
        check_origin(folder, origin)
        for name, size in origin.sizes().items():
            map_file(folder / name, size).close()  # all there, before anything is computed

    def _prepare(self) -> None:
        if (self.folder / STORE_FILE).exists():
            return
        with hold_store(self.folder, self.owner):
            if not (self.folder / STORE_FILE).exists():  # made by another process in between
                make_files(self.folder, self.origin)

    @property
    def done(self) -> npt.NDArray[np.uint8]:
        """Of each block, whether it has been embedded: 1 or 0, as it is now."""
        return np.fromfile(self.folder / "done.u8", np.uint8, self.origin.num_blocks)

    @property
    def is_complete(self) -> bool:
        """Whether every image has been embedded."""
        return bool(self.done.all())

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """The label of each image, (n,); -1 where its record could not be read."""
        return np.frombuffer(self._map("labels.i32"), np.int32)

    @cached_property
    def _bytes(self) -> mmap.mmap:
        return self._map(self.origin.embeddings_name)

    @cached_property
    def _rows(self) -> Tensor:
        """The bits of all embeddings, int16 (2n, D): image i at row 2i, its mirror image after it."""
        bits = torch.frombuffer(self._bytes, dtype=torch.int16)
        return bits.view(2 * self.origin.num_images, self.origin.embedding_dim)

    @cached_property
    def _shuffled_rows(self) -> Tensor:
        # What comes next on the disk is not what is read next.
        self._bytes.madvise(mmap.MADV_RANDOM)
        return self._rows

    def _map(self, name: str) -> mmap.mmap:
        return map_file(self.folder / name, self.origin.sizes()[name])

    def lookup(self, sample_ids: Tensor, is_flipped: Tensor) -> Tensor:
        """The unit embeddings (N, D), fp32, of images (N,) or, where `is_flipped` (N,), of their mirror images.

        All are on the CPU.

        Raises:
            DataError: an image had no usable record when the embeddings were made, or is not in the store.
        """
        num_images = self.origin.num_images
        if len(sample_ids) and not 0 <= int(sample_ids.min()) <= int(sample_ids.max()) < num_images:
            outside = sample_ids[(sample_ids < 0) | (sample_ids >= num_images)]
            raise DataError(
                f"{self.folder}: has embeddings of {num_images} images, and image {int(outside[0])} was "
                "asked for; the data changed since they were made: remove the folder to make them anew"
            )
        rows = self._gather(2 * sample_ids + is_flipped).view(DTYPES[self.origin.dtype])
        is_missing = rows[:, 0].isnan()
        if bool(is_missing.any()):
            raise DataError(
                f"{self.folder}: has no embedding of image {int(sample_ids[is_missing][0])}, which could not be read "
                "when they were made; remove the folder to make them anew"
            )
        return rows.float()

    def _gather(self, places: Tensor) -> Tensor:
        """The bits of the rows at `places` (N,), (N, D).

        Where the last rows came slowly, they came from the disk one after another; then all of these are asked for at
        once first, which would cost more than it saves where they are in memory.
        """
        rows, started = self._shuffled_rows, time.perf_counter()
        if self._is_slow:
            row_bytes = rows.shape[1] * rows.element_size()
            starts = places * row_bytes
            for start in (starts // mmap.PAGESIZE * mmap.PAGESIZE).tolist():
                self._bytes.madvise(mmap.MADV_WILLNEED, start, min(row_bytes + mmap.PAGESIZE, len(self._bytes) - start))
        bits = torch.index_select(rows, 0, places)
        self._is_slow = time.perf_counter() - started > _SLOW_ROW_SECONDS * len(places)
        return bits

    def views(self, images: slice | npt.NDArray[Any]) -> Floats:
        """The embeddings of images and of their mirror images, fp32 (N, 2, D); NaN where an image has none."""
        bits = self._rows.view(self.origin.num_images, 2, self.origin.embedding_dim)
        chosen = bits[images] if isinstance(images, slice) else bits[torch.from_numpy(np.asarray(images, np.int64))]
        floats: Floats = chosen.view(DTYPES[self.origin.dtype]).float().numpy()
        return floats

    def has_embedding(self) -> npt.NDArray[np.bool_]:
        """Whether each image has an embedding, (n,)."""
        first = self._rows[::2, 0].contiguous().view(DTYPES[self.origin.dtype])
        has: npt.NDArray[np.bool_] = (~first.isnan()).numpy()
        return has

    def fill(
        self,
        backbone: nn.Module,
        input_spec: InputSpec,
        dataset: FaceData,
        *,
        device: torch.device,
        is_skipping: bool = False,
    ) -> None:
        """Embed what is not there yet, block by block, shared over the ranks; an interrupted filling is taken up.

        The bytes depend on neither the number of ranks nor on interruptions. See `fill_blocks` for the rest.

        Raises:
            DataError: an image cannot be decoded (and `is_skipping` is off), its embedding is not finite, or the disk
                is full.
        """
        on_first_rank(self._require_space)
        blocks = [int(block) for block in np.flatnonzero(self.done == 0)]
        fill_blocks(self.folder, self.origin, blocks, backbone, input_spec, dataset, device, is_skipping)

    def _require_space(self) -> None:
        origin, missing = self.origin, missing_bytes(self.folder, self.origin)
        logger.info(
            "%s: embedding %d images and their mirror images, %s in all, %s to come, %s free",
            self.folder,
            origin.num_images,
            size_text(store_bytes(origin)),
            size_text(missing),
            size_text(free_bytes(self.folder)),
        )
        require_free_space(self.folder, origin, missing)


def find_embeddings(
    folder: Path,
    backbone: nn.Module,
    input_spec: InputSpec,
    dataset: FaceData,
    *,
    device: torch.device,
    dtype: Literal["float16", "bfloat16"] = "float16",
    precision: Literal["fp32", "bf16"] = "fp32",
    is_skipping: bool = False,
    owner: str = "teacher.cache.folder",
) -> EmbeddingStore:
    """The embeddings of `dataset` under a network: those in `folder`, or computed into it now by all ranks.

    Args:
        device: where `backbone` is.
        dtype: of what is kept.
        precision: of the network's forward pass.
        is_skipping: leave out images that do not decode, instead of stopping at the first.
        owner: the setting that names the folder, for messages.

    Raises:
        CheckpointError: the folder belongs to another network or other data. DataError: an image cannot be used, or
            the disk is too small. ConfigError: embeddings are missing, and the images lie in tar shards.
        GkdError: another process is filling the folder now.
    """
    origin = origin_of(backbone, input_spec, dataset, dtype=dtype, precision=precision)
    store = EmbeddingStore(folder, origin, owner)
    if not distributed.broadcast_object(store.is_complete):
        if is_streamed(dataset):
            raise ConfigError(
                f"{folder}: embeddings are made in the order of sample ids, for which tar shards would be "
                "fetched over and over; make them with `prepare.py cache` from the set that the shards were written "
                "from, which the folder then serves as well"
            )
        with held_by_first_rank(folder, owner):
            store.fill(backbone, input_spec, dataset, device=device, is_skipping=is_skipping)
    return store


@contextmanager
def held_by_first_rank(folder: Path, owner: str) -> Iterator[None]:
    """Hold the folder; rank 0 does it for all."""
    with ExitStack() as stack:
        on_first_rank(lambda: stack.enter_context(hold_store(folder, owner)))
        yield
