"""Batch norms in data-parallel training: each rank has running statistics of its own.

What is evaluated, exported and kept is their mean over the ranks. The live ones stay as they are, so that saving or
evaluating at any step changes nothing of the run; a checkpoint keeps those of every rank beside the mean. The counters
`num_batches_tracked` need no care: every rank has seen as many batches.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

BatchNorm = nn.modules.batchnorm._BatchNorm
# A checkpoint's plain values are bounded; 32 MiB of text hold a large network's statistics for about 90 ranks.
MAX_STATISTICS_BYTES = 32 << 20


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch norm of `module` in eval mode; called after each `train()`, which would undo it."""
    for child in module.modules():
        if isinstance(child, BatchNorm):
            child.eval()


def keep_frozen(module: nn.Module) -> None:
    """Put the batch norms of frozen parts in eval mode; called after each `train()`, which would undo it.

    A batch norm is in a frozen part where none of its parameters is trained; for one without parameters, those of the
    smallest part around it count.
    """
    for child in _frozen_batch_norms(module, is_frozen=False):
        child.eval()


def _frozen_batch_norms(module: nn.Module, *, is_frozen: bool) -> Iterator[nn.Module]:
    own = [parameter.requires_grad for parameter in module.parameters()]
    is_frozen = not any(own) if own else is_frozen
    if is_frozen and isinstance(module, BatchNorm):
        yield module
    for child in module.children():
        yield from _frozen_batch_norms(child, is_frozen=is_frozen)


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with batch norms that take their statistics over the images of all ranks; parameters stay the same.

    Raises:
        ConfigError: not on a CUDA device, where alone torch has them.
    """
    if device.type != "cuda":
        raise ConfigError(
            f"train.sync_batch_norm: needs CUDA, and this run is on {device.type}, for which torch has no synchronised "
            "batch norm; set it to false, or train.freeze_batch_norm to true"
        )
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm  # without annotations in torch
    converted: nn.Module = convert(module)
    return converted


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running means and variances that differ from rank to rank, by name: of all but synchronised batch norms."""
    found: dict[str, Tensor] = {}
    for prefix, child in module.named_modules():
        if isinstance(child, BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
            named = child.named_buffers(prefix=prefix, recurse=False)
            found |= {name: buffer for name, buffer in named if buffer.is_floating_point()}
    return found


@contextmanager
def averaged(*groups: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the tensors of `groups` their means over the ranks, and each rank its own back afterwards, bit for bit.

    Collective: one all-reduce for all of them. With one process nothing happens. The sum is taken in float64, so that
    values on which all ranks agree stay as they are.

    Args:
        groups: floating-point tensors by name, such as `statistics(network)` and `ema.statistics()`; the same names
            and shapes on every rank.
    """
    tensors = [tensor for group in groups for tensor in group.values()]
    if distributed.world_size() == 1 or not tensors:
        yield
        return
    own = [tensor.detach().clone() for tensor in tensors]
    means = distributed.all_reduce_sum(torch.cat([tensor.flatten().double() for tensor in own]))
    _fill(tensors, means.div_(distributed.world_size()))
    try:
        yield
    finally:
        for tensor, kept in zip(tensors, own, strict=True):
            tensor.copy_(kept)


def own_statistics(*groups: Mapping[str, Tensor]) -> list[str]:
    """The tensors of `groups` of every rank, in rank order, each as text; collective, and empty with one process.

    Called outside of `averaged`. Empty, with a warning, where the ranks are so many that a checkpoint's plain values
    could not hold them: the means are kept all the same.
    """
    if distributed.world_size() == 1 or not any(groups):
        return []
    raw = b"".join(_raw(tensor) for group in groups for tensor in group.values())
    num_bytes = distributed.world_size() * 4 * (len(raw) + 2) // 3
    if num_bytes > MAX_STATISTICS_BYTES:
        logger.warning(
            "the batch-norm statistics of %d ranks take %d MiB, which is too much for a checkpoint: it keeps their "
            "means only, and a resumed run is not bit-identical; train.sync_batch_norm=true needs none of them",
            distributed.world_size(),
            num_bytes >> 20,
        )
        return []
    return distributed.gather_objects(base64.b64encode(raw).decode("ascii"))


def restore_statistics(states: Sequence[str], *groups: Mapping[str, Tensor]) -> None:
    """Give this rank back what `own_statistics` took, after the checkpoint's means were loaded.

    Where the number of ranks has changed, or the batch norms are synchronised now, those means stay.

    Args:
        states: what `own_statistics` returned.
        groups: the same tensors in the same order; filled in place.

    Raises:
        CheckpointError: the text is not what this network's statistics make.
    """
    tensors = [tensor for group in groups for tensor in group.values()]
    if not tensors or len(states) != distributed.world_size():
        return
    # Every rank checks what is meant for each, so that all of them refuse a damaged file.
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    raw = [_decode(state, rank, num_bytes) for rank, state in enumerate(states)][distributed.rank()]
    start = 0
    for tensor in tensors:
        stop = start + tensor.numel() * tensor.element_size()
        tensor.copy_(torch.frombuffer(raw[start:stop], dtype=tensor.dtype).view(tensor.shape))
        start = stop


def _decode(state: str, rank: int, num_bytes: int) -> bytearray:
    where = f"the checkpoint's batch-norm statistics of rank {rank}"
    try:
        raw = bytearray(base64.b64decode(state, validate=True))
    except ValueError as error:
        raise CheckpointError(f"{where} are damaged: {error}; give another checkpoint") from error
    if len(raw) != num_bytes:
        raise CheckpointError(
            f"{where} take {len(raw)} bytes and those of this network {num_bytes}; they are damaged, or of another "
            "network; give another checkpoint"
        )
    return raw


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
