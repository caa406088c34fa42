"""Primitives along the class axis that heads and distillation losses share.

Shapes: N images, C classes. None of them reads a value back from a CUDA device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gkd.core.errors import ConfigError, DataError

# Work on so many entries at a time that temporaries stay in a core's cache, or are small beside the logits on a GPU.
_CPU_CHUNK_ENTRIES = 2**18
_GPU_CHUNK_ENTRIES = 2**24
# Rows of so many entries are each enough work to be taken one by one on the CPU.
_FEWEST_LONG_ROW_ENTRIES = 2**13


def row_chunks(scores: Tensor) -> Iterator[slice]:
    """Slices of rows that together cover `scores` (N, C), each of bounded size and of at least one row."""
    entries = _CPU_CHUNK_ENTRIES if scores.device.type == "cpu" else _GPU_CHUNK_ENTRIES
    step = max(1, entries // max(1, scores.shape[1]))
    for start in range(0, len(scores), step):
        yield slice(start, start + step)


def has_long_rows(scores: Tensor) -> bool:
    """Whether `scores` (N, C) has so many classes that a way of its own pays."""
    return scores.shape[1] >= _FEWEST_LONG_ROW_ENTRIES


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: fp32, or float64 where any of `tensors` is float64."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def log_sum_exp(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """log Σ_{j in mask} exp(scores_j) of each row, in float64 (N,); -inf where the mask of a row is empty.

    The row's maximum is taken out first, and added back in float64: differences of two results lose nothing to the
    rounding of a large common value.

    Args:
        scores: (N, C), fp32 or float64.
        mask: bool (N, C), the classes that count; all of them where it is None.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    best = scores.amax(dim=1, keepdim=True)
    best = best.masked_fill(best.isneginf(), 0.0)
    total = (scores - best).exp_().sum(dim=1, dtype=torch.float64)
    return best.squeeze(1).double() + total.log()


def top_k_mask(scores: Tensor, k: int | Tensor) -> Tensor:
    """Mark the k best classes of each row, exactly k of them: bool (N, C).

    Rule for ties: of equal scores the lower class index comes first. (`torch.topk` promises no order.)

    Args:
        scores: (N, C), without NaN.
        k: between 1 and C: one number, or int64 (N, 1) with each row's own, or (1, 1) for all rows.
    """
    if isinstance(k, Tensor) and k.numel() == 1 and k.device.type == "cpu":
        k = int(k)  # on the CPU reading it is free, and one k for all rows needs no sort
    cut = _kth_best(scores, k)
    above, ties = scores > cut, scores == cut
    room = k - above.sum(dim=1, keepdim=True)
    if scores.device.type == "cpu" and bool((ties.sum(dim=1, keepdim=True) == room).all()):
        return above.logical_or_(ties)  # the usual case; a GPU would have to wait to learn of it
    first_ties = ties.cumsum(dim=1, dtype=torch.int32) <= room
    return above.logical_or_(ties.logical_and_(first_ties))


def _kth_best(scores: Tensor, k: int | Tensor) -> Tensor:
    if isinstance(k, int):
        return scores.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    ordered = scores.sort(dim=1, descending=True).values
    return ordered.gather(1, k.expand(len(scores), 1) - 1)


def check_labels(labels: Tensor, scores: Tensor, num_classes: int | None = None) -> None:
    """Refuse labels that do not fit `scores` (N, C); the range is checked on the CPU only, where it costs no wait.

    Args:
        num_classes: C, where `scores` has only some of the columns.

    Raises:
        ConfigError: `scores` is not a floating-point (N, C) matrix, or `labels` not an int64 (N,) vector.
        DataError: a label lies outside [0, C).
    """
    if scores.ndim != 2 or not scores.is_floating_point() or 0 in scores.shape:
        raise ConfigError(f"class scores must be a non-empty floating-point (N, C) matrix, got {_describe(scores)}")
    if labels.dtype != torch.int64 or labels.shape != scores.shape[:1]:
        raise ConfigError(f"labels must be int64 of shape ({len(scores)},) beside scores {tuple(scores.shape)}, "
                          f"got {_describe(labels)}")  # fmt: skip
    if labels.device.type != "cpu":
        return
    check_label_range(labels, scores.shape[1] if num_classes is None else num_classes)


def check_label_range(labels: Tensor, num_classes: int) -> None:
    """Refuse labels outside [0, C).

    Raises:
        DataError: as above.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(f"labels must lie in [0, {num_classes}), the number of classes, but range from {low} to "
                        f"{high}; does the head's num_classes match the data set?")  # fmt: skip


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
