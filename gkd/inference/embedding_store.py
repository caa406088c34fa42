"""The embeddings of a whole data set, computed once by all ranks, kept on disk, and read by sample id.

<folder>/store.json        what the embeddings belong to: data, network, input; and their number and size
<folder>/embeddings.f16    float16 (n, 2, D): of each image and of its mirror image, unit length; NaN: no usable image
<folder>/labels.i32        int32 (n,)
<folder>/done.u8           one byte a block of images: 1 once the block is on disk

Shapes: n images of the data set, N of a batch, D embedding dimension.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import CheckpointError, DataError
from gkd.core.files import atomic_write, locked_folder, read_bounded
from gkd.data import FaceData, decode_image
from gkd.inference.embed import embed_pixels, eval_mode, input_size, on_first_rank, raise_first_failure
from gkd.models import InputSpec

logger = logging.getLogger(__name__)

STORE_FILE = "store.json"
FORMAT = "gkd.embeddings"
FORMAT_VERSION = 1
BLOCK_SIZE = 1024
_DECODE_THREADS = 4
_MAX_STORE_BYTES = 1 << 20
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Origin:
    """What embeddings belong to. Two stores with equal origins hold equal embeddings.

    data: the data set's fingerprint. network: SHA-256 of the network's weights. input: its input conversion as text.
    """

    data: str
    network: str
    input: str
    num_images: int
    embedding_dim: int


class EmbeddingStore:
    """Embeddings of every image and mirror image of a data set, in a folder.

    Args:
        folder: made where it is missing.
        origin: what the embeddings are to belong to.

    Raises:
        CheckpointError: the folder holds embeddings of another origin, or is damaged. DataError: it cannot be written,
            or the disk is too small.
    """

    def __init__(self, folder: Path, origin: Origin) -> None:
        self.folder = folder
        self.origin = origin
        on_first_rank(lambda: _prepare(folder, origin))
        check_origin(folder, origin)
        shape = (origin.num_images, 2, origin.embedding_dim)
        num_blocks = -(-origin.num_images // BLOCK_SIZE)
        # A finished store is only read, so it may lie on a disk that cannot be written.
        is_finished = bool(_map(folder / "done.u8", np.uint8, (num_blocks,), is_read_only=True).all())
        self._done = _map(folder / "done.u8", np.uint8, (num_blocks,), is_read_only=is_finished)
        self.embeddings = _map(folder / "embeddings.f16", np.float16, shape, is_read_only=is_finished)
        self.labels = _map(folder / "labels.i32", np.int32, shape[:1], is_read_only=is_finished)

    @property
    def is_complete(self) -> bool:
        """Whether every image has been embedded."""
        return bool(self._done.all())

    def lookup(self, sample_ids: Tensor, is_flipped: Tensor) -> Tensor:
        """The unit embeddings (N, D), fp32, of images (N,) or, where `is_flipped` (N,), of their mirror images.

        Raises:
            DataError: an image had no usable record when the embeddings were made.
        """
        rows = self.embeddings[sample_ids.cpu().numpy(), is_flipped.cpu().numpy().astype(np.intp)]
        if np.isnan(rows[:, 0]).any():
            missing = sample_ids.cpu().numpy()[np.isnan(rows[:, 0])]
            raise DataError(
                f"{self.folder}: has no embedding of image {missing[0]}, which could not be read when they were made; "
                "remove the folder to make them anew"
            )
        return torch.from_numpy(rows).to(sample_ids.device).float()

    def fill(
        self,
        backbone: nn.Module,
        input_spec: InputSpec,
        dataset: FaceData,
        *,
        device: torch.device,
        is_skipping: bool = False,
        batch_size: int = 64,
    ) -> None:
        """Embed what is not there yet, block by block, shared over the ranks; an interrupted filling is taken up.

        After each round of one block a rank the ranks tell each other how they fared: a failure reaches all at once.

        Args:
            is_skipping: leave images that do not decode without an embedding, instead of stopping.

        Raises:
            DataError: an image cannot be decoded (and `is_skipping` is off), or its embedding is not finite.
        """
        missing = [int(block) for block in np.flatnonzero(self._done == 0)]
        world_size = distributed.world_size()
        progress = _Progress(min(len(missing) * BLOCK_SIZE, self.origin.num_images))
        with torch.inference_mode(), eval_mode(backbone), ThreadPoolExecutor(_DECODE_THREADS) as pool:
            for start in range(0, len(missing), world_size):
                own = missing[start : start + world_size][distributed.rank() :][:1]
                failure: tuple[int, Exception] | None = None
                try:
                    for block in own:
                        images = _BlockReader(dataset, input_size(backbone), is_skipping, pool)
                        self._fill_block(block, images, backbone, input_spec, device, batch_size)
                except Exception as error:  # told to the other ranks first, which wait below; then raised
                    failure = (own[0], error)
                raise_first_failure(failure)
                progress.tell((start + world_size) * BLOCK_SIZE)
        distributed.barrier()

    def _fill_block(
        self,
        block: int,
        images: _BlockReader,
        backbone: nn.Module,
        input_spec: InputSpec,
        device: torch.device,
        batch_size: int,
    ) -> None:
        end = min((block + 1) * BLOCK_SIZE, self.origin.num_images)
        for start in range(block * BLOCK_SIZE, end, batch_size):
            indices = range(start, min(start + batch_size, end))
            pixels, usable, labels = images.read(indices)
            rows = np.full((len(indices), 2, self.origin.embedding_dim), np.nan, dtype=np.float16)
            if usable:
                both = [embed_pixels(backbone, input_spec, view.to(device)) for view in (pixels, pixels.flip(-1))]
                rows[usable] = torch.stack([_unit(view, indices, images.dataset) for view in both], dim=1).numpy()
            self.embeddings[indices.start : indices.stop] = rows
            self.labels[indices.start : indices.stop] = labels
        self.embeddings.flush()
        self.labels.flush()
        self._done[block] = 1
        self._done.flush()


class _BlockReader:
    """Reads and decodes images of a data set with a few threads."""

    def __init__(self, dataset: FaceData, size: tuple[int, int], is_skipping: bool, pool: ThreadPoolExecutor) -> None:
        self.dataset = dataset
        self.size = size
        self.is_skipping = is_skipping
        self.pool = pool

    def read(self, indices: Sequence[int]) -> tuple[Tensor, list[int], list[int]]:
        """Pixels uint8 (usable, 3, H, W), the places in `indices` of the usable images, and all labels."""
        read = list(self.pool.map(self._read_one, indices))
        usable = [place for place, (pixels, _) in enumerate(read) if pixels is not None]
        images = [pixels for pixels, _ in read if pixels is not None]
        stacked = np.stack(images) if images else np.empty((0, *self.size, 3), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), usable, [label for _, label in read]

    def _read_one(self, index: int) -> tuple[npt.NDArray[np.uint8] | None, int]:
        label = -1
        try:
            encoded, label = self.dataset[index]
            return decode_image(encoded, self.size, self.dataset.describe(index)), label
        except DataError as error:
            if not self.is_skipping:
                raise
            logger.warning("left out a record that cannot be used: %s", error)
            return None, label


def store_bytes(origin: Origin) -> int:
    """What a store takes on disk."""
    return origin.num_images * (origin.embedding_dim * 4 + 4)


def network_digest(backbone: nn.Module) -> str:
    """SHA-256 (hex) of a network's weights: of the file of a foreign one, else of all tensors with their names."""
    file_digest = getattr(backbone, "sha256", None)
    if file_digest is not None:
        return str(file_digest)
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unit(embeddings: Tensor, indices: Sequence[int], dataset: FaceData) -> Tensor:
    norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    is_unfit = ~(torch.isfinite(norm[:, 0]) & (norm[:, 0] > 0))
    if bool(is_unfit.any()):
        first = indices[int(is_unfit.nonzero()[0])]
        raise DataError(f"{dataset.describe(first)}: the network's embedding of it is zero or not finite")
    unit: Tensor = (embeddings / norm).half()
    return unit


def _prepare(folder: Path, origin: Origin) -> None:
    """Make the files of an empty store; a folder without `store.json` holds nothing that counts."""
    if (folder / STORE_FILE).exists():
        return
    with hold_store(folder):
        if (folder / STORE_FILE).exists():  # made by another process in between
            return
        try:
            _make_files(folder, origin)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written: {error.strerror}; choose another folder") from error


def hold_store(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from filling `folder`; one of them that holds it already is an error."""
    return locked_folder(folder, "teacher.centres.folder", "another process is making class centres")


def _make_files(folder: Path, origin: Origin) -> None:
    num_bytes, disk = store_bytes(origin), os.statvfs(folder)
    if num_bytes > disk.f_bavail * disk.f_frsize:
        raise DataError(
            f"{folder}: the embeddings of {origin.num_images:,} images take {num_bytes / 1e9:.1f} GB and "
            f"{disk.f_bavail * disk.f_frsize / 1e9:.1f} GB are free; choose a folder on a larger disk"
        )
    sizes = {
        "embeddings.f16": origin.num_images * 2 * origin.embedding_dim * 2,
        "labels.i32": origin.num_images * 4,
        "done.u8": -(-origin.num_images // BLOCK_SIZE),
    }
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)
    values = {"format": FORMAT, "format_version": FORMAT_VERSION, **_values(origin)}
    with atomic_write(folder / STORE_FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _values(origin: Origin) -> dict[str, Any]:
    return {**vars(origin), "block_size": BLOCK_SIZE}


def check_origin(folder: Path, origin: Origin) -> None:
    """Refuse a folder whose embeddings are of another network, other data or another input."""
    stored = _read_values(folder / STORE_FILE)
    wanted = _values(origin)
    changed = [f"{key}: {str(stored.get(key))[:80]} there, {str(value)[:80]} now" for key, value in wanted.items()]
    different = [text for key, text in zip(wanted, changed, strict=True) if stored.get(key) != wanted[key]]
    if different:
        raise CheckpointError(
            f"{folder}: holds embeddings and class centres of another network or of other data "
            f"({'; '.join(different)}); name another folder, or remove this one to make them anew"
        )


def _read_values(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(read_bounded(path, _MAX_STORE_BYTES))
    except (DataError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove the folder to make it anew") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT or values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path}: is not a store of embeddings of this version; name another folder")
    return values


def _map(path: Path, dtype: type[np.generic], shape: tuple[int, ...], *, is_read_only: bool) -> np.memmap[Any, Any]:
    wanted = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
        if size == wanted:
            return np.memmap(path, dtype=dtype, mode="r" if is_read_only else "r+", shape=shape)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened: {error.strerror}; remove the folder to make it anew"
        ) from error
    raise CheckpointError(f"{path}: has {size} bytes instead of {wanted}; remove the folder to make it anew")


class _Progress:
    """A line now and then on how far the filling is."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self.started = self.told = time.monotonic()

    def tell(self, num_done: int) -> None:
        now = time.monotonic()
        if now - self.told < _SECONDS_BETWEEN_LINES or num_done >= self.num_images:
            return
        self.told = now
        rate = num_done / (now - self.started)
        left = (self.num_images - num_done) / rate / 60
        logger.info("embedded %d of %d images, %.0f a second, %.0f min left", num_done, self.num_images, rate, left)
