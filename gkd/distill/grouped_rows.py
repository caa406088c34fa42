"""Grouped KD on the CPU, row by row: each row is read from memory once and its gradient written once.

What lies between happens in a core's cache, and the gradient of the loss is computed with its value, since the weights
of its terms are known by then. Primary is the target and the best others, so a row's groups are told by one number, the
value from which on a class is Primary. Exponentials are powers of two, which are several times cheaper.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.core.classes import compute_dtype
from gkd.distill.grouped_terms import (
    binary_divergence,
    gradient_coefficients,
    grouped_gradient,
    row_gradient,
    row_terms,
)
from gkd.distill.grouping import target_and_best_others
from gkd.distill.row_cut import Guess, count_of, guess_kth_best, kth_best_other

# Sums of exponentials outside this range lose entries to fp32's own, and such a row is done the careful way.
_SMALLEST_SUM, _GREATEST_SUM = 1e-25, 1e30
# A group's sum is the row's less the other group's where it is this share of it: two bits are lost at most.
_SAFE_SHARE = 0.25
# Longer rows are worked on so many entries at a time, seven numbers for each of which fit into a core's cache.
_BLOCK_ENTRIES = 2**17
# The first columns say by how much the two networks' logits differ in the mean.
_NUM_COLUMNS_FOR_MEAN = 1024


class RankedTerms(torch.autograd.Function):
    """(total, binary, primary, log-sum-exps): the first three are scalars to differentiate, the last is (4, N).

    total = Σ weights · (binary, primary). Where only total is differentiated, the gradient is at hand already.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        k: Tensor,
        rank_by: Literal["student", "teacher"],
        temperature: float,
        weights: tuple[float, float],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = _Rows(student, teacher, labels, k.expand(len(student)), rank_by, temperature, weights)
        gradient, binary, primary, group_lse = rows.compute(with_gradient=ctx.needs_input_grad[0])
        ctx.save_for_backward(student, teacher, labels, k, group_lse)
        ctx.mark_non_differentiable(group_lse)
        ctx.set_materialize_grads(False)
        ctx.rank_by, ctx.temperature, ctx.weights, ctx.gradient = rank_by, temperature, weights, gradient
        total = weights[0] * binary + weights[1] * primary
        dtype = compute_dtype(student, teacher)
        return total.to(dtype), binary.to(dtype), primary.to(dtype), group_lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_total, grad_binary, grad_primary, _ = grads
        if grad_total is not None and grad_binary is None and grad_primary is None and ctx.gradient is not None:
            gradient, ctx.gradient = ctx.gradient, None  # handed over: a second backward computes it anew
            if grad_total != 1:
                gradient.mul_(grad_total)
            return (gradient.to(ctx.saved_tensors[0].dtype), *[None] * 6)
        return (_gradient_again(ctx, grad_total, grad_binary, grad_primary), *[None] * 6)


def _gradient_again(ctx: Any, grad_total: Tensor | None, *grad_parts: Tensor | None) -> Tensor:
    """The gradient of any sum of total and parts, from the logits."""
    student, teacher, labels, k, group_lse = ctx.saved_tensors
    total = 0.0 if grad_total is None else float(grad_total)
    each = [weight * total + (0.0 if grad is None else float(grad))
            for weight, grad in zip(ctx.weights, grad_parts, strict=True)]  # fmt: skip
    ranked, k = student if ctx.rank_by == "student" else teacher, k.expand(len(student))

    def is_primary(rows: slice) -> Tensor:
        return target_and_best_others(ranked[rows], labels[rows], k[rows, None])

    grad_terms = torch.tensor([*each, 0.0], dtype=torch.float64)
    return grouped_gradient(student, teacher, is_primary, group_lse, grad_terms, ctx.temperature)


class _Rows:
    """One batch, and four rows of scratch that stay in the cache."""

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        k: Tensor,
        rank_by: str,
        temperature: float,
        weights: tuple[float, float],
    ) -> None:
        self.student, self.teacher, self.labels, self.k = student, teacher, labels, k.tolist()
        self.is_student_ranked = rank_by == "student"
        self.dtype = compute_dtype(student, teacher)
        self.temperature = temperature
        # T²/N of the loss times 1/T of the derivative of logits / T.
        self.binary_weight, self.primary_weight = (weight * temperature / len(student) for weight in weights)
        num_classes = student.shape[1]
        self.scratch = [torch.empty(num_classes, dtype=self.dtype) for _ in range(4)]
        self.blocks = [slice(start, start + _BLOCK_ENTRIES) for start in range(0, num_classes, _BLOCK_ENTRIES)]

    def compute(self, with_gradient: bool) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """The gradient of total (N, C) or None, binary, primary (scalars), log-sum-exps (4, N)."""
        gradient = torch.empty(self.student.shape, dtype=self.dtype) if with_gradient else None
        spare = torch.empty_like(self.scratch[0])
        ranked = self.student if self.is_student_ranked else self.teacher
        guesses = guess_kth_best(ranked, torch.tensor(self.k, dtype=torch.float64))
        student_shifts, teacher_shifts = self._shifts(guesses)
        primary, group_lse = [], []
        for index, label in enumerate(self.labels.tolist()):
            out = spare if gradient is None else gradient[index]
            student, teacher = self._row(self.student, index), self._row(self.teacher, index)
            result = None
            if self._mark_primary(student if self.is_student_ranked else teacher, label, self.k[index], guesses[index]):
                result = self._row_fast(student, teacher, student_shifts[index], teacher_shifts[index], out)
            divergence, lse = result or self._row_carefully(index, out)
            primary.append(divergence)
            group_lse.append(lse)
        lse_table = torch.tensor(group_lse, dtype=torch.float64).t().contiguous()
        binary = binary_divergence(lse_table).mean() * self.temperature**2
        return gradient, binary, torch.tensor(primary, dtype=torch.float64).mean() * self.temperature**2, lse_table

    def _row(self, logits: Tensor, index: int) -> Tensor:
        return logits[index].to(self.dtype).contiguous()

    def _shifts(self, guesses: list[Guess]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What is added to the exponents of each row, so that those near the end of Primary are small."""
        first = slice(0, _NUM_COLUMNS_FOR_MEAN)
        excess = (self.student[:, first].to(self.dtype) - self.teacher[:, first].to(self.dtype)).mean(dim=1)
        ranked = torch.tensor([guess.value for guess in guesses], dtype=self.dtype)
        student, teacher = (ranked, ranked - excess) if self.is_student_ranked else (ranked + excess, ranked)
        scale = -math.log2(math.e) / self.temperature
        return (student * scale).unbind(), (teacher * scale).unbind()

    def _mark_primary(self, row: Tensor, label: int, k: int, guess: Guess) -> bool:
        """Set the first row of scratch to 1 for Primary and 0 for Secondary; False where it could not be done."""
        mask, other = self.scratch[:2]
        cut = math.inf
        if k == 1:
            mask.zero_()
        else:
            if k == len(row):
                return False
            cut = kth_best_other(row, row[label].item(), k - 1, guess, (mask, other))
            torch.ge(row, cut, out=mask)
        mask[label] = 1.0
        excess = count_of(mask) - k
        if excess > 0:  # equal entries: the first are Primary
            ties = (row == cut).nonzero().view(-1)
            ties = ties[ties != label]
            mask[ties[max(len(ties) - excess, 0) :]] = 0.0
        return excess == 0 or count_of(mask) == k

    def _row_fast(
        self, student: Tensor, teacher: Tensor, student_shift: Tensor, teacher_shift: Tensor, out: Tensor
    ) -> tuple[float, tuple[float, ...]] | None:
        """Primary's divergence and the log-sum-exps of one row, `out` getting the gradient; None where unsafe."""
        mask, q_inside, q, p_inside = self.scratch
        scale = math.log2(math.e) / self.temperature
        p_sums, q_sums, mean_gap = _GroupSums(), _GroupSums(), 0.0
        for block in self.blocks:  # all that is touched here stays in a core's cache
            part_p, part_q, part_gap = out[block], q[block], p_inside[block]
            torch.add(student_shift, student[block], alpha=scale, out=part_p)
            torch.add(teacher_shift, teacher[block], alpha=scale, out=part_q)
            torch.sub(part_q, part_p, out=part_gap)
            part_p.exp2_()
            q_sums.add(part_q.exp2_(), mask[block], q_inside[block])
            mean_gap += torch.dot(q_inside[block], part_gap).item()
            p_sums.add(part_p, mask[block], part_gap)
        q_primary, q_secondary, _ = q_sums.split(q, q_inside)
        p_primary, p_secondary, is_apart = p_sums.split(out, p_inside)
        sums = (p_primary, p_secondary, q_primary, q_secondary)
        if not all(_SMALLEST_SUM < value < _GREATEST_SUM for value in sums):
            return None
        log_sums = [math.log2(value) for value in sums]
        divergence = mean_gap / q_primary - (log_sums[2] - log_sums[0])
        self._write_gradient(out, p_inside, q_inside, sums, is_apart)
        shifts = (student_shift.item(), student_shift.item(), teacher_shift.item(), teacher_shift.item())
        lse = tuple((value - shift) * math.log(2) for value, shift in zip(log_sums, shifts, strict=True))
        return divergence * math.log(2), lse

    def _write_gradient(
        self, p: Tensor, p_inside: Tensor, q_inside: Tensor, sums: tuple[float, ...], is_apart: bool
    ) -> None:
        """Turn p into the gradient: -f p̂^S on S and (w + f) p̂^S - w p̂^T on P, where f = binary (b_P^S - b_P^T)."""
        p_primary, p_secondary, q_primary, q_secondary = sums
        mass_gap = p_primary / (p_primary + p_secondary) - q_primary / (q_primary + q_secondary)
        from_binary = self.binary_weight * mass_gap
        on_secondary = -from_binary / p_secondary
        on_primary = (self.primary_weight + from_binary) / p_primary
        if not is_apart:
            on_primary -= on_secondary  # p still holds Primary too
        of_teacher = self.primary_weight / q_primary
        p.mul_(on_secondary)
        if of_teacher == 0:
            p.add_(p_inside, alpha=on_primary)
        else:
            p.add_(q_inside.sub_(p_inside, alpha=on_primary / of_teacher), alpha=-of_teacher)

    def _row_carefully(self, index: int, out: Tensor) -> tuple[float, tuple[float, ...]]:
        one = slice(index, index + 1)
        ranked = self.student if self.is_student_ranked else self.teacher
        is_primary = target_and_best_others(ranked[one], self.labels[one], self.k[index])
        student, teacher = self.student[one], self.teacher[one]
        terms, lse = row_terms(student, teacher, is_primary, self.temperature, with_secondary=False)
        weights = torch.tensor([self.binary_weight, self.primary_weight, 0.0], dtype=torch.float64)
        student, teacher = student.to(self.dtype), teacher.to(self.dtype)
        coefficients = gradient_coefficients(lse, weights)
        out.copy_(row_gradient(student, teacher, is_primary, lse, coefficients, self.temperature)[0])
        return terms[1].item(), tuple(lse[:, 0].tolist())


class _GroupSums:
    """The sums of a row's powers over Primary and over all, block by block."""

    def __init__(self) -> None:
        self.primary = self.total = 0.0

    def add(self, powers: Tensor, mask: Tensor, inside: Tensor) -> None:
        """Add a block; `inside` gets Primary's powers, and 0 elsewhere."""
        self.total += powers.sum().item()
        self.primary += torch.mul(powers, mask, out=inside).sum().item()

    def split(self, powers: Tensor, inside: Tensor) -> tuple[float, float, bool]:
        """The sums over Primary and Secondary of the whole row; and whether `powers` lost Primary for it."""
        if self.total - self.primary > _SAFE_SHARE * self.total:
            return self.primary, self.total - self.primary, False
        return self.primary, powers.sub_(inside).sum().item(), True
