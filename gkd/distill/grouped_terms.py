"""Grouped KD's terms for any groups, given as a mask, with a closed-form backward.

Shapes: N images, C classes, n rows of a chunk. S student, T teacher (superscript); P Primary, S Secondary (subscript).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.core.classes import compute_dtype, log_sum_exp, row_chunks

PARTS = ("binary", "primary", "secondary")


class GroupedTerms(torch.autograd.Function):
    """(binary, primary, secondary, log-sum-exps): the first three are scalars to differentiate.

    Kept for backward: both logits, the groups, and log-sum-exps (4, N): student P, student S, teacher P, teacher S.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, is_primary: Tensor, temperature: float, with_secondary: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chunks = [
            row_terms(student[rows], teacher[rows], is_primary[rows], temperature, with_secondary)
            for rows in row_chunks(student)
        ]
        per_row = torch.cat([terms for terms, _ in chunks], dim=1)
        group_lse = torch.cat([lse for _, lse in chunks], dim=1)
        ctx.save_for_backward(student, teacher, is_primary, group_lse)
        ctx.mark_non_differentiable(group_lse)
        ctx.temperature = temperature
        binary, primary, secondary = (per_row.mean(dim=1) * temperature**2).to(compute_dtype(student, teacher))
        return binary, primary, secondary, group_lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_terms: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, is_primary, group_lse = ctx.saved_tensors
        grad = grouped_gradient(
            student, teacher, is_primary.__getitem__, group_lse, torch.stack(grad_terms[:3]), ctx.temperature
        )
        return grad, None, None, None, None


def grouped_gradient(
    student: Tensor,
    teacher: Tensor,
    is_primary: Callable[[slice], Tensor],
    group_lse: Tensor,
    grad_terms: Tensor,
    temperature: float,
) -> Tensor:
    """The gradient of the student's logits (N, C).

    Args:
        student, teacher: logits (N, C).
        is_primary: gives the mask of some rows.
        group_lse: (4, N), as GroupedTerms gives it.
        grad_terms: what reaches binary, primary and secondary: (3,).
        temperature: T.
    """
    # T²/N of the loss times 1/T of the derivative of logits / T.
    per_row = grad_terms.double() * (temperature / len(student))
    grad = torch.empty_like(student)
    for rows in row_chunks(student):
        coefficients = gradient_coefficients(group_lse[:, rows], per_row)
        grad[rows] = row_gradient(
            student[rows], teacher[rows], is_primary(rows), group_lse[:, rows], coefficients, temperature
        )
    return grad


def row_terms(
    student_logits: Tensor, teacher_logits: Tensor, is_primary: Tensor, temperature: float, with_secondary: bool
) -> tuple[Tensor, Tensor]:
    """Binary, primary and secondary of each row (3, n), and the log-sum-exps (4, n), all without T² and in float64."""
    dtype = compute_dtype(student_logits, teacher_logits)
    student, teacher = student_logits.to(dtype) / temperature, teacher_logits.to(dtype) / temperature
    groups = (is_primary, ~is_primary)
    group_lse = torch.stack([log_sum_exp(logits, group) for logits in (student, teacher) for group in groups])
    primary = _divergence(student, teacher, groups[0], group_lse[0], group_lse[2])
    secondary = torch.zeros_like(primary)
    if with_secondary:
        secondary = _divergence(student, teacher, groups[1], group_lse[1], group_lse[3])
    return torch.stack([binary_divergence(group_lse), primary, secondary]), group_lse


def _divergence(student: Tensor, teacher: Tensor, group: Tensor, student_lse: Tensor, teacher_lse: Tensor) -> Tensor:
    """Σ_g p̂^T (u^T - u^S) - (LSE^T - LSE^S) of each row; 0 where the group is empty.

    The difference of the log-sum-exps is taken out inside the sum, so that large parts do not cancel in fp32.
    """
    is_empty = teacher_lse.isneginf()
    lse_gap = (teacher_lse - student_lse).masked_fill(is_empty, 0.0)
    rounded_gap = lse_gap.to(student.dtype)
    reference = teacher_lse.masked_fill(is_empty, 0.0).to(student.dtype)
    weights = (teacher - reference[:, None]).exp_().masked_fill_(~group, 0.0)
    gap = (teacher - student).sub_(rounded_gap[:, None])
    mean_gap = gap.mul_(weights).sum(dim=1, dtype=torch.float64) / weights.sum(dim=1, dtype=torch.float64)
    return (mean_gap + (rounded_gap.double() - lse_gap)).masked_fill(is_empty, 0.0)


def primary_log_odds(group_lse: Tensor) -> Tensor:
    """log(b_P / b_S) of the student and the teacher: (2, n); +inf where Secondary is empty."""
    return group_lse[0::2] - group_lse[1::2]


def samples_of(group_sizes: Tensor, group_lse: Tensor) -> dict[str, Tensor]:
    """Each image's size of Primary and its mass in both networks, from K (N,) or (1,) and log-sum-exps (4, N)."""
    student_mass, teacher_mass = primary_log_odds(group_lse).sigmoid()
    return {
        "group_size": group_sizes.expand_as(student_mass),
        "student_primary_mass": student_mass,
        "teacher_primary_mass": teacher_mass,
    }


def mean_stats(samples: dict[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """The means over the images of what `samples_of` gives, and that of the size of Secondary."""
    group_size = samples["group_size"].double().mean()
    return {
        "group_size": group_size,
        "secondary_size": num_classes - group_size,
        "student_primary_mass": samples["student_primary_mass"].mean(),
        "teacher_primary_mass": samples["teacher_primary_mass"].mean(),
    }


def binary_divergence(group_lse: Tensor) -> Tensor:
    student_odds, teacher_odds = primary_log_odds(group_lse)
    on_primary = F.logsigmoid(teacher_odds) - F.logsigmoid(student_odds)
    on_secondary = F.logsigmoid(-teacher_odds) - F.logsigmoid(-student_odds)
    divergence: Tensor = teacher_odds.sigmoid() * on_primary + (-teacher_odds).sigmoid() * on_secondary
    return divergence.masked_fill(teacher_odds.isposinf(), 0.0)


def gradient_coefficients(group_lse: Tensor, grad_terms: Tensor) -> Tensor:
    """What multiplies p̂^S on P, p̂^S on S, p̂^T on P and p̂^T on S in the gradient: (4, n)."""
    binary, primary, secondary = grad_terms
    student_odds, teacher_odds = primary_log_odds(group_lse)
    from_binary = binary * (student_odds.sigmoid() - teacher_odds.sigmoid())
    return torch.stack(
        [
            primary + from_binary,
            secondary - from_binary,
            primary.expand_as(from_binary),
            secondary.expand_as(from_binary),
        ]
    )


def row_gradient(
    student_logits: Tensor,
    teacher_logits: Tensor,
    is_primary: Tensor,
    group_lse: Tensor,
    coefficients: Tensor,
    temperature: float,
) -> Tensor:
    """Binary p̂^S (b_g^S - b_g^T) and, in each group that counts, p̂^S - p̂^T, weighted and summed: (n, C)."""
    dtype = compute_dtype(student_logits, teacher_logits)
    rounded_lse = group_lse.to(dtype)
    # What rounding a log-sum-exp takes away goes into the coefficient: p̂^S - p̂^T is often far smaller than either.
    coefficients = (coefficients * (rounded_lse - group_lse).exp()).to(dtype).unsqueeze(2)
    rounded_lse = rounded_lse.unsqueeze(2)

    def weighted(logits: Tensor, row: int) -> Tensor:
        lse = torch.where(is_primary, rounded_lse[row], rounded_lse[row + 1])
        weight = torch.where(is_primary, coefficients[row], coefficients[row + 1])
        return (logits.to(dtype) / temperature - lse).exp_() * weight

    gradient: Tensor = weighted(student_logits, 0) - weighted(teacher_logits, 2)
    return gradient
