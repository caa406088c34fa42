"""Computing kept embeddings: blocks of images shared over the ranks, reading ahead of the network, safe to interrupt.

Shapes: N images of a batch, D embedding dimension, H x W pixels.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import DataError
from gkd.data import FaceData, decode_image
from gkd.inference.embed import embed_pixels, eval_mode, input_size, raise_first_failure
from gkd.inference.embedding_files import DTYPES, Origin
from gkd.models import InputSpec

logger = logging.getLogger(__name__)

# Images at once, by kind of device. Part of the result: sums are rounded otherwise in batches of another size. On a CPU
# few at a time are up to twice as fast, since their maps stay in memory that is there already.
BATCH_SIZES = {"cpu": 16, "cuda": 128}
_DECODE_THREADS = 4
_BATCHES_AHEAD = 2
_SECONDS_BETWEEN_LINES = 30.0


def fill_blocks(
    folder: Path,
    origin: Origin,
    blocks: Sequence[int],
    backbone: nn.Module,
    input_spec: InputSpec,
    dataset: FaceData,
    device: torch.device,
    is_skipping: bool,
) -> None:
    """Embed `blocks`, one a rank at a time, and write each to disk before it counts as done.

    After each round of one block a rank the ranks tell each other how they fared: a failure reaches all at once.
    Images are read and decoded by threads while the network runs. Batches have the size that belongs to the kind of
    device, but for the last of a block, so a block's bytes are the same whoever computes it and whenever.

    Raises:
        DataError: an image cannot be decoded (and `is_skipping` is off), its embedding is zero or not finite, or the
            disk is full.
    """
    rank, world_size = distributed.rank(), distributed.world_size()
    batch_size = BATCH_SIZES.get(device.type, 128)
    own = list(blocks[rank::world_size])
    num_images = sum(len(origin.block_range(block)) for block in blocks)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(eval_mode(backbone))
        files = stack.enter_context(_Files(folder, origin).opened())
        reader = stack.enter_context(
            _Reader(dataset, input_size(backbone), is_skipping).reading(origin, own, batch_size)
        )
        progress = stack.enter_context(_Progress(num_images).shown())
        network = _Network(backbone, input_spec, device, origin, dataset)
        for number in range(-(-len(blocks) // world_size)):
            failure: tuple[int, Exception] | None = None
            try:
                if number < len(own):
                    _fill_block(own[number], files, reader, network)
            except Exception as error:  # told to the other ranks first, which wait below; then raised
                failure = (own[number], error)
            raise_first_failure(failure)
            progress.tell(sum(len(origin.block_range(block)) for block in blocks[: (number + 1) * world_size]))
    distributed.barrier()


def _fill_block(block: int, files: _Files, batches: Iterator[_Images], network: _Network) -> None:
    whole = network.origin.block_range(block)
    stop = whole.start
    while stop < whole.stop:
        images = next(batches)
        assert images.indices.start == stop
        files.write(images.indices, network.embed(images), images.labels)
        stop = images.indices.stop
    files.finish(block)


@dataclass(frozen=True)
class _Images:
    """A batch: `usable` are the places in `indices` of the images in `pixels` (N, 3, H, W)."""

    indices: range
    pixels: Tensor
    usable: list[int]
    labels: list[int]


class _Network:
    """The network, and what it is given and gives."""

    def __init__(
        self, backbone: nn.Module, input_spec: InputSpec, device: torch.device, origin: Origin, dataset: FaceData
    ) -> None:
        self.backbone = backbone
        self.input_spec = input_spec
        self.device = device
        self.origin = origin
        self.dataset = dataset

    def embed(self, images: _Images) -> Tensor:
        """Unit embeddings (N, 2, D) of images and mirror images in the kept type; NaN for those that are not usable."""
        rows = torch.full((len(images.indices), 2, self.origin.embedding_dim), torch.nan)
        if images.usable:
            pixels = images.pixels.to(self.device)
            usable = [images.indices[place] for place in images.usable]
            rows[images.usable] = torch.stack([self._unit(view, usable) for view in (pixels, pixels.flip(-1))], dim=1)
        return rows.to(DTYPES[self.origin.dtype])

    def _unit(self, pixels: Tensor, indices: Sequence[int]) -> Tensor:
        is_bf16 = self.origin.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bf16):
            embeddings = embed_pixels(self.backbone, self.input_spec, pixels)
        norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
        is_unfit = ~(torch.isfinite(norm[:, 0]) & (norm[:, 0] > 0))
        if bool(is_unfit.any()):
            first = indices[int(is_unfit.nonzero()[0])]
            raise DataError(f"{self.dataset.describe(first)}: the network's embedding of it is zero or not finite")
        unit: Tensor = embeddings / norm
        return unit


class _Files:
    """The open files. Written by position: a full disk is then an error here, not a signal that ends the process."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        self.folder = folder
        self.origin = origin
        self.descriptors: dict[str, int] = {}

    @contextmanager
    def opened(self) -> Iterator[_Files]:
        try:
            for name in self.origin.sizes():
                self.descriptors[name] = self._open(name)
            yield self
        finally:
            for descriptor in self.descriptors.values():
                os.close(descriptor)

    def _open(self, name: str) -> int:
        try:
            return os.open(self.folder / name, os.O_RDWR)
        except OSError as error:
            raise _write_error(self.folder, error) from error

    def write(self, indices: range, rows: Tensor, labels: list[int]) -> None:
        """The rows (N, 2, D) and labels of images."""
        content = rows.contiguous().view(torch.int16).numpy().tobytes()
        self._write(self.origin.embeddings_name, content, indices.start * 2 * self.origin.embedding_dim * 2)
        self._write("labels.i32", np.array(labels, np.int32).tobytes(), indices.start * 4)

    def finish(self, block: int) -> None:
        """Let a block count as done, once all of it is on disk."""
        self._flush(self.origin.embeddings_name)
        self._flush("labels.i32")
        self._write("done.u8", b"\1", block)
        self._flush("done.u8")

    def _write(self, name: str, content: bytes, offset: int) -> None:
        view = memoryview(content)
        try:
            while view:
                written = os.pwrite(self.descriptors[name], view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise _write_error(self.folder, error) from error

    def _flush(self, name: str) -> None:
        try:
            os.fdatasync(self.descriptors[name])
        except OSError as error:
            raise _write_error(self.folder, error) from error


def _write_error(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: cannot be written: {error.strerror}; make room and run again (what is done is kept), or choose "
        "another folder"
    )


class _Reader:
    """Reads and decodes images of a data set with a few threads."""

    def __init__(self, dataset: FaceData, size: tuple[int, int], is_skipping: bool) -> None:
        self.dataset = dataset
        self.size = size
        self.is_skipping = is_skipping

    @contextmanager
    def reading(self, origin: Origin, blocks: Sequence[int], batch_size: int) -> Iterator[Iterator[_Images]]:
        """The batches of `blocks` in their order, read a few ahead."""
        pool = ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="decode")
        try:
            yield self._batches(origin, blocks, batch_size, pool)
        finally:
            pool.shutdown(cancel_futures=True)

    def _batches(
        self, origin: Origin, blocks: Sequence[int], batch_size: int, pool: ThreadPoolExecutor
    ) -> Iterator[_Images]:
        pending: deque[tuple[range, list[Future[tuple[npt.NDArray[np.uint8] | None, int]]]]] = deque()
        for block in blocks:
            whole = origin.block_range(block)
            for start in range(0, len(whole), batch_size):
                indices = whole[start : start + batch_size]
                pending.append((indices, [pool.submit(self._read_one, index) for index in indices]))
                if len(pending) > _BATCHES_AHEAD:
                    yield self._collect(*pending.popleft())
        while pending:
            yield self._collect(*pending.popleft())

    def _collect(self, indices: range, futures: list[Future[tuple[npt.NDArray[np.uint8] | None, int]]]) -> _Images:
        read = [future.result() for future in futures]
        images = [pixels for pixels, _ in read if pixels is not None]
        stacked = np.stack(images) if images else np.empty((0, *self.size, 3), np.uint8)
        usable = [place for place, (pixels, _) in enumerate(read) if pixels is not None]
        # As (N, H, W, 3) in memory, on which convolutions are faster.
        return _Images(indices, torch.from_numpy(stacked).permute(0, 3, 1, 2), usable, [label for _, label in read])

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


class _Progress:
    """A bar where someone looks at it, else a line now and then, of all ranks together."""

    def __init__(self, num_images: int) -> None:
        self.num_images = num_images
        self.num_done = 0
        self.started = self.told = time.monotonic()
        self.bar: Any = None

    @contextmanager
    def shown(self) -> Iterator[_Progress]:
        if distributed.rank() == 0 and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=self.num_images, unit=" images", desc="embedding")
        try:
            yield self
        finally:
            if self.bar is not None:
                self.bar.close()

    def tell(self, num_done: int) -> None:
        new, self.num_done = num_done - self.num_done, num_done
        if self.bar is not None:
            self.bar.update(new)
            return
        now = time.monotonic()
        if now - self.told < _SECONDS_BETWEEN_LINES or num_done >= self.num_images:
            return
        self.told = now
        rate = num_done / (now - self.started)
        left = (self.num_images - num_done) / rate / 60
        logger.info("embedded %d of %d images, %.0f a second, %.0f min left", num_done, self.num_images, rate, left)
