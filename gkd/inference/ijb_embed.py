"""IJB-B and IJB-C with a network: aligned faces, embeddings on all ranks, figures.

Shapes: N images, D embedding dimension.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import ConfigError, DataError
from gkd.core.progress import progress
from gkd.data.alignment import Pixels, Points, estimate_similarity, template
from gkd.data.ijb_lists import IjbFaces, IjbPairs, read_ijb_faces, read_ijb_pairs
from gkd.evaluation.ijb import IjbOptions, IjbResult, verify_templates
from gkd.inference.align_photo import read_photo
from gkd.inference.embed import embed_pixels, eval_mode, input_size, on_first_rank, raise_first_failure
from gkd.models import InputSpec

_log = logging.getLogger(__name__)

_BATCHES_AHEAD = 2
_SHARED_BYTES = 1 << 26


def evaluate_ijb(
    backbone: nn.Module,
    input_spec: InputSpec,
    folder: str | Path,
    *,
    name: str | None = None,
    options: IjbOptions | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    num_threads: int = 4,
) -> IjbResult:
    """The figures of a backbone on IJB-B or IJB-C; the same on every rank, bit for bit whatever their number.

    Every rank reads the images' lists and embeds its share; rank 0 reads the pairs, before any image is embedded, and
    scores them.

    Args:
        folder: see `read_ijb_faces`, as for `name`.
        options: `IjbOptions()` where not given.
        batch_size, device, num_threads: as in `embed_ijb`.

    Raises:
        ConfigError: a setting out of range, or a backbone whose input is not square.
        DataError: a list or an image is unfit, or an embedding.
    """
    options = options or IjbOptions()
    faces = _read_on_all_ranks(folder, name)
    pairs: list[IjbPairs] = []
    on_first_rank(lambda: pairs.append(read_ijb_pairs(faces)))
    start = time.perf_counter()
    embeddings = embed_ijb(
        backbone,
        input_spec,
        faces,
        batch_size=batch_size,
        flip=options.use_flip_test,
        device=device,
        num_threads=num_threads,
    )
    seconds = time.perf_counter() - start
    results: list[IjbResult] = []
    on_first_rank(lambda: results.append(_judge(embeddings, faces, pairs[0], options, seconds)))
    result: IjbResult = distributed.broadcast_object(results[0] if results else None)
    return result


def embed_ijb(
    backbone: nn.Module,
    input_spec: InputSpec,
    faces: IjbFaces,
    *,
    batch_size: int = 64,
    flip: bool = True,
    device: torch.device | str = "cpu",
    num_threads: int = 4,
) -> npt.NDArray[np.float32]:
    """The raw embedding of each aligned face, or the sum of it and that of the mirror image, in the faces' order.

    Batch b is faces b * batch_size up to (b + 1) * batch_size whatever the number of processes; rank b mod W computes
    it, and every rank returns all rows. Photos are read and aligned a few batches ahead, so memory is the result's and
    that of a few batches. A failure on one rank is raised on all.

    Args:
        backbone: as in `embed_images`; its input must be square.
        batch_size: faces that run through the network at once.
        flip: add the embedding of the mirror image.
        device: where the backbone is.
        num_threads: threads that read and align.

    Returns:
        (N, D) float32.

    Raises:
        ConfigError: a setting out of range, or a backbone whose input is not square.
        DataError: a photo cannot be read: the first such photo, on every rank.
        GkdError: another rank failed for another reason.
    """
    if batch_size < 1 or num_threads < 1:
        raise ConfigError(f"batch_size and num_threads must be at least 1, got {batch_size} and {num_threads}")
    reader = _FaceReader(faces, _square_size(backbone))
    num_batches = -(-len(faces) // batch_size)
    own_batches = range(distributed.rank(), num_batches, distributed.world_size())
    rows = np.zeros((len(faces), int(backbone.embedding_dim)), np.float32)  # type: ignore[arg-type]
    failure: tuple[int, Exception] | None = None
    current = 0
    try:
        with torch.inference_mode(), eval_mode(backbone):
            batches = _aligned_batches(reader, own_batches, batch_size, num_threads)
            for current, pixels in progress(batches, "embedding", total=len(own_batches), unit="batches"):
                start = current * batch_size
                rows[start : start + batch_size] = _embed(backbone, input_spec, pixels.to(device), flip)
    except _UnreadableBatchError as error:
        failure = (error.batch, error.cause)
    except Exception as error:  # told to the other ranks first, which wait in the sum below; then raised
        failure = (current, error)
    raise_first_failure(failure)
    _warn_of_outside(reader, faces)
    return _shared(rows)


def align_loosely(photo: Pixels, points: Points, size: int) -> tuple[Pixels, bool]:
    """The face of a photo at the template's place, and whether its landmarks lie in the photo.

    As `align_face`, but landmarks may lie outside: what the photo does not show is 0, as in the public evaluation,
    which leaves no image out.

    Args:
        photo: uint8 (H, W, 3).
        points: (5, 2).
        size: the height and width of the result, in pixels.
    """
    matrix = estimate_similarity(points, template(size))
    aligned = cv2.warpAffine(photo, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
    low, high = points.min(axis=0), points.max(axis=0)
    is_inside = bool((high >= 0).all() and low[0] < photo.shape[1] and low[1] < photo.shape[0])
    return np.asarray(aligned, np.uint8), is_inside


class _UnreadableBatchError(Exception):
    """Carries which batch could not be read; reading runs ahead, so the loop cannot know."""

    def __init__(self, batch: int, cause: Exception) -> None:
        super().__init__(str(cause))
        self.batch = batch
        self.cause = cause


class _FaceReader:
    """Reads and aligns faces, in any thread; notes those whose landmarks lie outside of their photo."""

    def __init__(self, faces: IjbFaces, size: int) -> None:
        self._faces = faces
        self._size = size
        self.outside: list[int] = []

    def __len__(self) -> int:
        return len(self._faces)

    def __call__(self, index: int) -> Pixels:
        """uint8 (size, size, 3), RGB."""
        try:
            photo = read_photo(self._faces.path(index))
            aligned, is_inside = align_loosely(photo, self._faces.landmarks[index], self._size)
        except DataError as error:
            raise DataError(f"{self._faces.describe(index)}: {error}") from error
        if not is_inside:
            self.outside.append(index)
        return aligned[..., ::-1]


def _aligned_batches(
    reader: _FaceReader, batches: Iterable[int], batch_size: int, num_threads: int
) -> Iterator[tuple[int, Tensor]]:
    """(batch number, uint8 (N, 3, H, W) RGB) in order; a few batches are read ahead by threads."""
    pending: deque[tuple[int, list[Future[Pixels]]]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="align")
    try:
        for batch in batches:
            indices = range(batch * batch_size, min((batch + 1) * batch_size, len(reader)))
            pending.append((batch, [pool.submit(reader, index) for index in indices]))
            if len(pending) > _BATCHES_AHEAD:
                yield _collect(*pending.popleft())
        while pending:
            yield _collect(*pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(batch: int, aligned: list[Future[Pixels]]) -> tuple[int, Tensor]:
    try:
        stacked = np.stack([future.result() for future in aligned])
    except Exception as error:
        raise _UnreadableBatchError(batch, error) from error
    return batch, torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def _embed(backbone: nn.Module, input_spec: InputSpec, pixels: Tensor, flip: bool) -> npt.NDArray[np.float32]:
    embeddings = embed_pixels(backbone, input_spec, pixels)
    if flip:
        embeddings = embeddings + embed_pixels(backbone, input_spec, pixels.flip(-1))
    rows: npt.NDArray[np.float32] = embeddings.numpy()
    return rows


def _read_on_all_ranks(folder: str | Path, name: str | None) -> IjbFaces:
    """Every rank reads its machine's lists; where one cannot, all fail."""
    failure: tuple[int, Exception] | None = None
    faces: list[IjbFaces] = []
    try:
        faces.append(read_ijb_faces(folder, name))
    except Exception as error:  # told to the other ranks first, which wait below; then raised
        failure = (0, error)
    raise_first_failure(failure)
    return faces[0]


def _square_size(backbone: nn.Module) -> int:
    height, width = input_size(backbone)
    if height != width:
        raise ConfigError(f"faces are aligned to squares, but the backbone takes {height}x{width} pixels")
    return height


def _shared(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Every rank's rows on every rank, in place. A rank has zeros for those of others, so the sum is exact."""
    num_rows = max(1, _SHARED_BYTES // (rows.shape[1] * rows.itemsize))
    for start in range(0, len(rows), num_rows):
        distributed.all_reduce_sum(torch.from_numpy(rows[start : start + num_rows]))
    return rows


def _warn_of_outside(reader: _FaceReader, faces: IjbFaces) -> None:
    """Every rank must call this at the same point."""
    outside = sorted(index for part in distributed.gather_objects(reader.outside) for index in part)
    if outside and distributed.rank() == 0:
        _log.warning(
            "%d faces have their landmarks outside of the photo and are black, such as %s",
            len(outside),
            faces.describe(outside[0]),
        )


def _judge(
    embeddings: npt.NDArray[np.float32], faces: IjbFaces, pairs: IjbPairs, options: IjbOptions, seconds: float
) -> IjbResult:
    try:
        result = verify_templates(
            embeddings,
            faces.template_of,
            faces.media_of,
            faces.detector_scores,
            pairs.left,
            pairs.right,
            pairs.is_same,
            name=faces.name,
            options=options,
        )
    except DataError as error:
        raise DataError(f"{faces.folder}: {error}") from error
    return replace(result, seconds={"embedding": seconds, **result.seconds})
