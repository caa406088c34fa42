"""Embeddings of encoded images, on one process or shared over all of a group.

Shapes: N images, D embedding dimension, H x W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.data import decode_image
from gkd.evaluation import VerificationResult, verify_pairs
from gkd.models import InputSpec

_DECODE_THREADS = 4
_BATCHES_AHEAD = 2


class Pairs(Protocol):
    """What a set of pairs shows: images 2i and 2i + 1 are pair i."""

    @property
    def images(self) -> Sequence[bytes]:
        """Encoded images, (2P)."""

    @property
    def is_same(self) -> npt.NDArray[np.bool_]:
        """Whether a pair is of one person, (P,)."""


def embed_images(
    backbone: nn.Module,
    input_spec: InputSpec,
    images: Sequence[bytes],
    *,
    batch_size: int = 64,
    flip: bool = True,
    device: torch.device | str = "cpu",
    describe: Callable[[int], str] = "image {}".format,
) -> npt.NDArray[np.float32]:
    """The raw embedding of each image, or the sum of it and that of the mirror image.

    Batch b is `images[b * batch_size : (b + 1) * batch_size]` whatever the number of processes; rank b mod W computes
    it, and every rank returns all rows. A failure on one rank is raised on all, so none waits for the others.

    Args:
        backbone: takes converted images (N, 3, H, W) on `device`, gives (N, D); has `input_size` and `embedding_dim`.
            It is run in eval mode, and every module is put back as it was.
        images: encoded images, (N).
        flip: add the embedding of the mirror image, before any normalisation.
        device: where the backbone is.
        describe: names image i in an error message.

    Returns:
        (N, D) float32.

    Raises:
        DataError: an image cannot be decoded: the first such image, on every rank.
        GkdError: another rank failed for another reason.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    num_batches = -(-len(images) // batch_size)
    own_batches = range(distributed.rank(), num_batches, distributed.world_size())
    rows: dict[int, npt.NDArray[np.float32]] = {}
    failure: tuple[int, Exception] | None = None
    current = 0
    try:
        with torch.inference_mode(), eval_mode(backbone):
            for current, pixels in _decoded_batches(images, own_batches, batch_size, input_size(backbone), describe):
                rows[current] = _embed_batch(backbone, input_spec, pixels.to(device), flip)
    except _UndecodableBatchError as error:
        failure = (error.batch, error.cause)
    except Exception as error:  # told to the other ranks first, which wait in the gathering below; then raised
        failure = (current, error)
    raise_first_failure(failure)
    return _join(distributed.gather_objects(rows), num_batches, int(backbone.embedding_dim))  # type: ignore[arg-type]


def evaluate_pairs(
    backbone: nn.Module,
    input_spec: InputSpec,
    pair_set: Pairs,
    *,
    flip: bool = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    name: str = "pair set",
) -> VerificationResult:
    """Verification figures of a backbone on a set of pairs; the same on every rank.

    Args:
        name: names the set in error messages. The others are as in `embed_images`.

    Raises:
        DataError: an image cannot be decoded, an embedding is unfit, or the set allows no figures.
    """
    embeddings = embed_images(
        backbone,
        input_spec,
        pair_set.images,
        batch_size=batch_size,
        flip=flip,
        device=device,
        describe=lambda index: f"{name}, image {index} (pair {index // 2})",
    )
    try:
        return verify_pairs(embeddings[0::2], embeddings[1::2], pair_set.is_same)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def input_size(backbone: nn.Module) -> tuple[int, int]:
    """The height and width that a backbone takes."""
    height, width = backbone.input_size  # type: ignore[misc]
    return int(height), int(width)


class _UndecodableBatchError(Exception):
    """Carries which batch could not be decoded; decoding runs ahead, so the loop cannot know."""

    def __init__(self, batch: int, cause: Exception) -> None:
        super().__init__(str(cause))
        self.batch = batch
        self.cause = cause


@contextmanager
def eval_mode(backbone: nn.Module) -> Iterator[None]:
    """Eval mode, then each module back to the mode it had: some may have been frozen one by one."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training


def _decoded_batches(
    images: Sequence[bytes],
    batches: Iterable[int],
    batch_size: int,
    size: tuple[int, int],
    describe: Callable[[int], str],
) -> Iterator[tuple[int, Tensor]]:
    """(batch number, uint8 (N, 3, H, W) RGB) in order; a few batches are decoded ahead by threads."""
    pending: deque[tuple[int, list[Future[npt.NDArray[np.uint8]]]]] = deque()
    pool = ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="decode")
    try:
        for batch in batches:
            indices = range(batch * batch_size, min((batch + 1) * batch_size, len(images)))
            pending.append((batch, [pool.submit(decode_image, images[i], size, describe(i)) for i in indices]))
            if len(pending) > _BATCHES_AHEAD:
                yield _collect(*pending.popleft())
        while pending:
            yield _collect(*pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(batch: int, decoded: list[Future[npt.NDArray[np.uint8]]]) -> tuple[int, Tensor]:
    try:
        stacked = np.stack([future.result() for future in decoded])
    except Exception as error:
        raise _UndecodableBatchError(batch, error) from error
    return batch, torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def embed_pixels(backbone: nn.Module, input_spec: InputSpec, pixels: Tensor) -> Tensor:
    """Raw embeddings (N, D) in fp32 on the CPU of uint8 RGB images (N, 3, H, W)."""
    embeddings: Tensor = backbone(input_spec.convert(pixels))
    return embeddings.float().cpu()


def _embed_batch(backbone: nn.Module, input_spec: InputSpec, pixels: Tensor, flip: bool) -> npt.NDArray[np.float32]:
    embeddings = embed_pixels(backbone, input_spec, pixels)
    if flip:
        embeddings = embeddings + embed_pixels(backbone, input_spec, pixels.flip(-1))
    rows: npt.NDArray[np.float32] = embeddings.numpy()
    return rows


def on_first_rank(function: Callable[[], object]) -> None:
    """Call `function` on rank 0; what it raises is raised on every rank, so none goes on alone."""
    failure: tuple[int, Exception] | None = None
    if distributed.rank() == 0:
        try:
            function()
        except Exception as error:  # told to the other ranks first, which wait below; then raised
            failure = (0, error)
    raise_first_failure(failure)


def raise_first_failure(failure: tuple[int, Exception] | None) -> None:
    """Raise on every rank the failure of the lowest batch, which one process alone would have met first.

    Only text travels between ranks: an exception need not survive the journey.
    """
    told = None if failure is None else (failure[0], isinstance(failure[1], DataError), _one_line(failure[1]))
    reports = distributed.gather_objects(told)
    failed = sorted((batch, rank, is_data, text) for rank, (batch, is_data, text) in _numbered(reports))
    if not failed:
        return
    _, first_rank, is_data_error, text = failed[0]
    if failure is not None and first_rank == distributed.rank():
        raise failure[1]
    raise DataError(text) if is_data_error else GkdError(f"embedding failed on rank {first_rank}: {text}")


def _numbered(reports: list[Any]) -> list[tuple[int, Any]]:
    return [(rank, report) for rank, report in enumerate(reports) if report is not None]


def _one_line(error: Exception) -> str:
    return str(error) if isinstance(error, GkdError) else f"{type(error).__name__}: {error}"


def _join(
    gathered: list[dict[int, npt.NDArray[np.float32]]], num_batches: int, embedding_dim: int
) -> npt.NDArray[np.float32]:
    by_batch = {batch: rows for part in gathered for batch, rows in part.items()}
    if num_batches == 0:
        return np.empty((0, embedding_dim), dtype=np.float32)
    return np.concatenate([by_batch[batch] for batch in range(num_batches)])
