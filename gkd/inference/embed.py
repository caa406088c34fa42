"""Embeddings of encoded images, on one process or shared over all of a group.

Shapes: N images, D embedding dimension, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.evaluation import VerificationResult, verify_pairs
from gkd.inference.decoding import UndecodableBatchError, decoded_batches
from gkd.inference.views import VIEWS, Rows, View, fuse_views, needed_views, require_finite
from gkd.models import InputSpec

Precision = Literal["fp32", "bf16"]


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
    flip: bool | str = True,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    describe: Callable[[int], str] = "image {}".format,
) -> Rows:
    """The embedding of each image, made of the raw ones of the image and of its mirror image.

    Args:
        flip: how the two are made one, a name of `gkd.evaluation.fusion.FUSIONS`; True is `sum`, False is `none`, for
            which mirror images are not embedded. The other arguments are as in `embed_views`.

    Returns:
        (N, D) float32.

    Raises:
        ConfigError: an unknown fusion. The rest is as in `embed_views`.
    """
    views = embed_views(
        backbone,
        input_spec,
        images,
        views=needed_views(flip),
        batch_size=batch_size,
        device=device,
        precision=precision,
        describe=describe,
    )
    return fuse_views(views, flip, describe)


def embed_views(
    backbone: nn.Module,
    input_spec: InputSpec,
    images: Sequence[bytes],
    *,
    views: Sequence[View] = VIEWS,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    describe: Callable[[int], str] = "image {}".format,
) -> dict[View, Rows]:
    """The raw embeddings of each image and of its mirror image, apart.

    Batch b is `images[b * batch_size : (b + 1) * batch_size]` whatever the number of processes; rank b mod W computes
    it, and every rank returns all rows. The last batch is filled up with its last image, and a view is a forward pass
    of its own: an embedding's rounding depends on the size of its batch, and so it is the same, bit for bit, on any
    number of ranks with equal threads, and whatever views are asked for. A failure on one rank is raised on all, so
    none waits for the others.

    Args:
        backbone: takes converted images (N, 3, H, W) on `device`, gives (N, D); has `input_size` and `embedding_dim`.
            It is run in eval mode, and every module is put back as it was.
        images: encoded images, (N).
        views: which of the two to embed.
        device: where the backbone is.
        precision: `bf16` runs the backbone under autocast.
        describe: names image i in an error message.

    Returns:
        (N, D) float32 of each view.

    Raises:
        ConfigError: a batch size, view or precision that does not exist.
        DataError: an image cannot be decoded: the first such image, on every rank; or embeddings are NaN or infinite:
            their number and the first images, on every rank.
        GkdError: another rank failed for another reason.
    """
    _check_choices(batch_size, views, precision)
    device = torch.device(device)
    num_batches = -(-len(images) // batch_size)
    own_batches = range(distributed.rank(), num_batches, distributed.world_size())
    rows: dict[int, dict[View, Rows]] = {}
    failure: tuple[int, Exception] | None = None
    current = 0
    try:
        with torch.inference_mode(), eval_mode(backbone), _autocast(device, precision):
            decoded = decoded_batches(images, own_batches, batch_size, input_size(backbone), describe)
            for current, pixels, num_images in decoded:
                both = _embed_batch(backbone, input_spec, pixels.to(device), views)
                rows[current] = {view: each[:num_images] for view, each in both.items()}
    except UndecodableBatchError as error:
        failure = (error.batch, error.cause)
    except Exception as error:  # told to the other ranks first, which wait in the gathering below; then raised
        failure = (current, error)
    raise_first_failure(failure)
    by_batch = {batch: each for part in distributed.gather_objects(rows) for batch, each in part.items()}
    empty = np.empty((0, int(backbone.embedding_dim)), dtype=np.float32)  # type: ignore[arg-type]
    joined = {view: np.concatenate([empty, *(by_batch[batch][view] for batch in range(num_batches))]) for view in views}
    require_finite(joined, describe)
    return joined


def evaluate_pairs(
    backbone: nn.Module,
    input_spec: InputSpec,
    pair_set: Pairs,
    *,
    flip: bool | str = True,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    name: str = "pair set",
) -> VerificationResult:
    """Verification figures of a backbone on a set of pairs; the same on every rank.

    Args:
        name: names the set in error messages. The others are as in `embed_images`.

    Raises:
        DataError: an image cannot be decoded, an embedding is unfit, or the set allows no figures.
    """
    views = embed_views(
        backbone,
        input_spec,
        pair_set.images,
        views=needed_views(flip),
        batch_size=batch_size,
        device=device,
        precision=precision,
        describe=image_of_pair(name),
    )
    return verify_views(views, pair_set.is_same, flip=flip, name=name)


def verify_views(
    views: Mapping[View, Rows], is_same: npt.NDArray[np.bool_], *, flip: bool | str = True, name: str = "pair set"
) -> VerificationResult:
    """Verification figures from the embeddings (2P, D) of a set's images and of their mirror images.

    Raises:
        DataError: an embedding is unfit, or the set allows no figures.
    """
    embeddings = fuse_views(views, flip, image_of_pair(name))
    try:
        return verify_pairs(embeddings[0::2], embeddings[1::2], is_same)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def image_of_pair(name: str) -> Callable[[int], str]:
    """What to call image i of the set of pairs `name` in messages."""
    return lambda index: f"{name}, image {index} (pair {index // 2})"


def default_batch_size(device: torch.device) -> int:
    """Images at once in an evaluation: 64, and 16 on a CPU.

    There larger batches are several times slower: each layer's output is then memory fresh from the system.
    """
    return 16 if device.type == "cpu" else 64


def input_size(backbone: nn.Module) -> tuple[int, int]:
    """The height and width that a backbone takes."""
    height, width = backbone.input_size  # type: ignore[misc]
    return int(height), int(width)


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


def embed_pixels(backbone: nn.Module, input_spec: InputSpec, pixels: Tensor) -> Tensor:
    """Raw embeddings (N, D) in fp32 on the CPU of uint8 RGB images (N, 3, H, W)."""
    embeddings: Tensor = backbone(input_spec.convert(pixels))
    return embeddings.float().cpu()


def _embed_batch(backbone: nn.Module, input_spec: InputSpec, pixels: Tensor, views: Sequence[View]) -> dict[View, Rows]:
    seen = {view: pixels.flip(-1) if view == "mirror" else pixels for view in views}
    return {view: embed_pixels(backbone, input_spec, each).numpy() for view, each in seen.items()}


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


def _check_choices(batch_size: int, views: Sequence[View], precision: Precision) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if not views or not set(views) <= set(VIEWS):
        raise ConfigError(f"views must be some of {', '.join(VIEWS)}, got {', '.join(views) or 'none'}")
    if precision not in ("fp32", "bf16"):
        raise ConfigError(f"precision must be fp32 or bf16, got `{precision}`")


def _autocast(device: torch.device, precision: Precision) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
