"""Copies of a run's tensors in host memory, from which a checkpoint is written while training goes on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gkd.core import distributed
from gkd.train.class_weights import copy_of


class HostCopies:
    """Copies tensors to host memory, into the same buffers each time; those for CUDA tensors are pinned.

    Each rank copies its own shards (DTensors), and the copies are shards of the same rows. Other tensors are the same
    on all ranks, and only rank 0's are ever stored, so only rank 0 copies them; elsewhere one number stands for all, to
    say name, shape and dtype.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of `tensors` as they are now, by name; they stand until the next call.

        What is no dense tensor is passed on as it is, for `Checkpoints.save` to refuse.
        """
        with torch.no_grad():
            copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        self._buffers = {name: _local(copy) for name, copy in copies.items() if _is_dense(copy)}
        if any(_is_dense(tensor) and tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        if not _is_dense(tensor):
            return tensor
        local = _local(tensor)
        if not isinstance(tensor, DTensor) and distributed.rank() != 0:
            return torch.empty((), dtype=tensor.dtype).expand(tensor.shape)
        buffer = self._buffer(name, local).copy_(local, non_blocking=True)
        return copy_of(tensor, buffer) if isinstance(tensor, DTensor) else buffer

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        old = self._buffers.get(name)
        if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
            return old
        return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_dense(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_meta
