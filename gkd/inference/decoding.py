"""Decodes encoded images in batches of one size, ahead of the network.

Shapes: N images, H x W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.data import decode_image

_DECODE_THREADS = 4
_BATCHES_AHEAD = 2


class UndecodableBatchError(Exception):
    """Carries which batch could not be decoded; decoding runs ahead, so the loop cannot know."""

    def __init__(self, batch: int, cause: Exception) -> None:
        super().__init__(str(cause))
        self.batch = batch
        self.cause = cause


def decoded_batches(
    images: Sequence[bytes],
    batches: Iterable[int],
    batch_size: int,
    size: tuple[int, int],
    describe: Callable[[int], str],
) -> Iterator[tuple[int, Tensor, int]]:
    """The batches of a share in order, of one size each; threads decode some of them ahead.

    Args:
        batches: which; batch b is `images[b * batch_size : (b + 1) * batch_size]`.
        size: (H, W) that the images must have, in pixels.
        describe: names image i in an error message.

    Yields:
        The number of the batch, its pixels (batch_size, 3, H, W), uint8 RGB, and how many of them count: a short batch
        is filled up with its last image.

    Raises:
        UndecodableBatchError: an image is unfit.
    """
    pending: deque[tuple[int, list[Future[npt.NDArray[np.uint8]]]]] = deque()
    pool = ThreadPoolExecutor(_DECODE_THREADS, thread_name_prefix="decode")
    try:
        for batch in batches:
            indices = range(batch * batch_size, min((batch + 1) * batch_size, len(images)))
            pending.append((batch, [pool.submit(decode_image, images[i], size, describe(i)) for i in indices]))
            if len(pending) > _BATCHES_AHEAD:
                yield _collect(*pending.popleft(), batch_size)
        while pending:
            yield _collect(*pending.popleft(), batch_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(batch: int, decoded: list[Future[npt.NDArray[np.uint8]]], batch_size: int) -> tuple[int, Tensor, int]:
    try:
        pixels = [future.result() for future in decoded]
    except Exception as error:
        raise UndecodableBatchError(batch, error) from error
    filled = np.stack(pixels + pixels[-1:] * (batch_size - len(pixels)))
    return batch, torch.from_numpy(filled).permute(0, 3, 1, 2).contiguous(), len(pixels)
