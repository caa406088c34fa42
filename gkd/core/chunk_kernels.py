"""Which code does the work on a chunk of scores: Triton kernels on CUDA, PyTorch elsewhere."""

from __future__ import annotations

import functools
import logging
from typing import Protocol

import torch
from torch import Tensor

from gkd.core import class_chunks, class_chunks_triton
from gkd.core.class_chunks import Gradient, GroupSums, Primary, RunningSum

logger = logging.getLogger(__name__)


class ChunkKernels(Protocol):
    """The functions of `gkd.core.class_chunks`."""

    def add_to_sum(self, scores: Tensor, running: RunningSum, inverse_temperature: float) -> None: ...
    def add_to_groups(
        self,
        student: Tensor,
        teacher: Tensor,
        primary: Primary,
        classes: Tensor,
        inverse_temperature: float,
        sums: GroupSums,
    ) -> None: ...
    def write_gradient(
        self,
        student: Tensor,
        teacher: Tensor | None,
        primary: Primary | None,
        classes: Tensor,
        inverse_temperature: float,
        gradient: Gradient,
        out: Tensor,
    ) -> None: ...
    def mass_of_classes(
        self, scores: Tensor, log_normaliser: Tensor, inverse_temperature: float, out: Tensor
    ) -> None: ...


def chunk_kernels(scores: Tensor) -> ChunkKernels:
    """The module that works on tensors like `scores`."""
    if scores.dtype == torch.float32 and _has_triton(scores.device):
        return class_chunks_triton
    return class_chunks


@functools.lru_cache
def _has_triton(device: torch.device) -> bool:
    is_there = class_chunks_triton.is_available(device)
    if device.type == "cuda" and not is_there:
        logger.warning("triton is not installed: class scores are worked on by PyTorch's own kernels, which is slower")
    return is_there
