"""The functions of `gkd.core.class_chunks` as Triton kernels, for scores in fp32 on a CUDA device.

Shapes: N images, c classes of a chunk; the rows of a matrix may lie further apart than c. Every function reads each
matrix once, and waits for nothing. Entries and the sums within a tile of columns are fp32; sums over tiles, and over
chunks, float64. The order of the additions depends on the shapes alone, so results repeat bit for bit.

Rows that begin at a multiple of 16 bytes are read four entries at a time: chunks of a multiple of 16 classes are
fastest.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch
from torch import Tensor

from gkd.core.class_chunks import Gradient, GroupSums, Primary, RunningSum

# Set here and not tuned at run time: trials would take place in the midst of training, on every rank by itself, and
# other blocks add up in another order, so that a run would not repeat. Each program that sums is one warp, whose
# reductions need no barrier, with 8 KB of scores in its registers: ten of them keep a multiprocessor's memory busy.
_SUM_BLOCK = 2048
_GROUP_BLOCK = 1024
_GRADIENT_BLOCK = 2048
_GRADIENT_WARPS = 4
# All warps lie along the columns, so that the sum over rows stays within a thread.
_MASS_BLOCK = 512
_MASS_ROWS = 8
_MASS_WARPS = 4
# Eight programs for each of a large GPU's multiprocessors; but fewer rows each than this cost more in partial sums.
_MASS_PROGRAMS = 1024
_MASS_MIN_ROWS = 64


def is_available(device: torch.device) -> bool:
    """Whether triton is installed and `device` is CUDA, or Triton's interpreter is on, which works on any device."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return (device.type == "cuda" or is_interpreted) and importlib.util.find_spec("triton") is not None


def add_to_sum(scores: Tensor, running: RunningSum, inverse_temperature: float) -> None:
    """Add the entries of `scores` (N, c)."""
    num_rows, num_columns = scores.shape
    if not scores.numel():
        return
    num_tiles = _ceil_div(num_columns, _SUM_BLOCK)
    best, total = torch.empty((2, num_rows, num_tiles), device=scores.device)
    _launch("sum_tile", (num_rows * num_tiles,), scores, scores.stride(0), num_columns, num_tiles, inverse_temperature,
            best, total, block=_SUM_BLOCK)  # fmt: skip
    _launch("merge_tiles", (num_rows, 1), best, total, None, None, num_tiles, inverse_temperature, running.best,
            running.total, None, None, is_grouped=False, block=_power_of_two(num_tiles))  # fmt: skip


def add_to_groups(
    student: Tensor, teacher: Tensor, primary: Primary, classes: Tensor, inverse_temperature: float, sums: GroupSums
) -> None:
    """Add the entries of both networks' scores (N, c) to the sums of their groups.

    Args:
        classes: int64 (c,), the class of each column, ascending.
    """
    num_rows, num_columns = student.shape
    if not student.numel():
        return
    num_tiles = _ceil_div(num_columns, _GROUP_BLOCK)
    tiles = torch.empty((11, num_rows, num_tiles), device=student.device)
    best, total, gap, count = tiles[:4], tiles[4:8], tiles[8:10], tiles[10:]
    _launch("sum_groups_of_tile", (num_rows * num_tiles,), student, student.stride(0), teacher, teacher.stride(0),
            num_columns, num_tiles, num_rows, inverse_temperature, primary.value, _cutoff_columns(primary, classes),
            best, total, gap, count, ranked_is_student=primary.ranked_is_student, has_all_ties=primary.has_all_ties,
            block=_GROUP_BLOCK)  # fmt: skip
    _launch("merge_tiles", (num_rows, 4), best, total, gap, count, num_tiles, inverse_temperature, sums.best,
            sums.total, sums.gap, sums.count, is_grouped=True, block=_power_of_two(num_tiles))  # fmt: skip


def write_gradient(
    student: Tensor,
    teacher: Tensor | None,
    primary: Primary | None,
    classes: Tensor,
    inverse_temperature: float,
    gradient: Gradient,
    out: Tensor,
) -> None:
    """The derivative of the total by the student's scores (N, c), into `out`, which may be `student` itself.

    class_weight · exp(z^S - class_lse), and where there is a teacher, in each group
    coefficient · exp(u^S - lse^S) - coefficient · exp(u^T - lse^T); 0 at excluded entries.
    """
    num_rows, num_columns = student.shape
    if not student.numel():
        return
    assert (teacher is None) == (primary is None)
    num_tiles = _ceil_div(num_columns, _GRADIENT_BLOCK)
    _launch("gradient_of_tile", (num_rows * num_tiles,), student, student.stride(0), teacher,
            0 if teacher is None else teacher.stride(0), out, out.stride(0), num_columns, num_tiles, num_rows,
            inverse_temperature, gradient.class_weight, gradient.class_lse, gradient.coefficients, gradient.group_lse,
            None if primary is None else primary.value, None if primary is None else _cutoff_columns(primary, classes),
            is_distilled=teacher is not None, ranked_is_student=primary is not None and primary.ranked_is_student,
            has_all_ties=primary is not None and primary.has_all_ties, block=_GRADIENT_BLOCK,
            num_warps=_GRADIENT_WARPS)  # fmt: skip


def mass_of_classes(scores: Tensor, log_normaliser: Tensor, inverse_temperature: float, out: Tensor) -> None:
    """Σ_n exp(u_nj - log_normaliser_n) of each class of `scores` (N, c), into float64 `out` (c,)."""
    num_rows, num_columns = scores.shape
    if not scores.numel():
        out.zero_()
        return
    num_blocks = _ceil_div(num_columns, _MASS_BLOCK)
    rows_each = max(_MASS_MIN_ROWS, _ceil_div(num_rows, _ceil_div(_MASS_PROGRAMS, num_blocks)))
    num_steps = _ceil_div(rows_each, _MASS_ROWS)
    num_parts = _ceil_div(num_rows, num_steps * _MASS_ROWS)
    parts = out[None] if num_parts == 1 else out.new_empty((num_parts, num_columns))
    _launch("mass_of_columns", (num_blocks, num_parts), scores, scores.stride(0), num_rows, num_columns,
            inverse_temperature, log_normaliser, parts, num_steps=num_steps, block_rows=_MASS_ROWS, block=_MASS_BLOCK,
            num_warps=_MASS_WARPS)  # fmt: skip
    if num_parts > 1:
        torch.sum(parts, dim=0, out=out)


def _cutoff_columns(primary: Primary, classes: Tensor) -> Tensor | None:
    """The number of columns with classes up to each row's cut-off: they ascend, so kernels need not read them."""
    if primary.has_all_ties:
        return None
    return torch.searchsorted(classes.contiguous(), primary.last_class, right=True)


def _launch(
    name: str, grid: tuple[int, ...], *arguments: Tensor | float | None, num_warps: int = 1, **constants: int
) -> None:
    """Run a kernel on the device of its tensors. Kernels are imported here: without triton this module still loads."""
    kernel = getattr(importlib.import_module("gkd.core.triton_kernels"), name)
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device(first.get_device()):  # -1, on the CPU, changes nothing
        # Versions of triton differ in whether they fuse a product and a sum, which rounds otherwise.
        kernel[grid](*arguments, **constants, num_warps=num_warps, enable_fp_fusion=True)


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
