"""Grouped Knowledge Distillation with a closed-form backward.

Shapes: N images, C classes. S student, T teacher (superscript); P Primary, S Secondary (subscript).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.core.classes import compute_dtype, log_sum_exp, row_chunks
from gkd.core.errors import ConfigError
from gkd.core.types import Losses
from gkd.distill.grouping import CumulativeMass, Grouping
from gkd.distill.loss import DistillLoss, check_logits


class GroupedKD(DistillLoss):
    """Match the teacher inside Primary, and between Primary and Secondary; Secondary itself is left free.

    With p = softmax(logits / T), b_g the mass of a group g and p̂ = p / b_g inside it,
        binary    = (T²/N) Σ_n Σ_g b_g^T log(b_g^T / b_g^S)
        primary   = (T²/N) Σ_n Σ_{j in P} p̂_j^T log(p̂_j^T / p̂_j^S), and secondary the same over Secondary;
        total     = primary_weight·primary + binary_weight·binary + secondary_weight·secondary.
    KL(p^T || p^S) is exactly binary + b_P^T·primary + b_S^T·secondary for each sample; here, as in the paper, the
    masses in front are dropped. With the target alone in Primary this is Decoupled Knowledge Distillation.

    Source: Zhao et al., "Grouped Knowledge Distillation for Deep Face Recognition", AAAI 2023, and the authors' public
    code (T = 4, weights 8, 1, 0). Differences: masses come from log-sum-exps, so that one which rounds to 0 gives a
    finite loss, not NaN; the gradient is computed from its formula and nothing of size (N, C) is kept for it but the
    logits and the groups. It cannot be differentiated twice.

    Args:
        temperature: T, above 0.
        primary_weight: of primary, at least 0.
        binary_weight: of binary, at least 0.
        secondary_weight: of secondary, at least 0; at 0 it is not computed.
        grouping: which classes are Primary, the same for both networks.

    Raises:
        ConfigError: a value outside its range.
    """

    needs: frozenset[str] = frozenset({"logits"})

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        primary_weight: float = 8.0,
        binary_weight: float = 1.0,
        secondary_weight: float = 0.0,
        grouping: Grouping = CumulativeMass(),  # noqa: B008 - it holds settings only
    ) -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"gkd.temperature must be a number above 0, got {temperature}; the paper uses 4")
        weights = {"binary": binary_weight, "primary": primary_weight, "secondary": secondary_weight}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"gkd.{name}_weight must be a number of at least 0, got {weight}")
        if not any(weights.values()):
            raise ConfigError("gkd: all three weights are 0, so there is nothing to learn; set one above 0")
        self.temperature = float(temperature)
        self.weights = weights
        self.grouping = grouping

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Losses:
        """The losses of one batch, in fp32 (float64 where either input is).

        Args:
            student_logits: (N, C); the only input that gets a gradient, in its own type.
            teacher_logits: (N, C), over the same classes.
            labels: int64 (N,), in [0, C).

        Returns:
            Losses with stats `group_size` and `secondary_size` (mean sizes of both groups), `student_primary_mass` and
            `teacher_primary_mass` (mean b_P at temperature T).

        Raises:
            ConfigError: shapes or types do not fit.
            DataError: a label is outside [0, C) (checked on the CPU).
        """
        check_logits(student_logits, teacher_logits, labels)
        teacher_logits = teacher_logits.detach()
        is_primary = self.grouping(student_logits.detach(), teacher_logits, labels)
        with_secondary = self.weights["secondary"] != 0
        *terms, group_lse = _GroupedTerms.apply(
            student_logits, teacher_logits, is_primary, self.temperature, with_secondary
        )
        parts: dict[str, Tensor] = dict(zip(("binary", "primary", "secondary"), terms, strict=True))
        if not with_secondary:
            del parts["secondary"]
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return Losses(total, parts, _stats(is_primary, group_lse))

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name}_weight={weight}" for name, weight in self.weights.items())
        return f"temperature={self.temperature}, {weights}, grouping={self.grouping}"


def _stats(is_primary: Tensor, group_lse: Tensor) -> dict[str, Tensor]:
    student_mass, teacher_mass = _primary_log_odds(group_lse).sigmoid().mean(dim=1)
    return {
        "group_size": is_primary.sum(dtype=torch.float64) / len(is_primary),
        "secondary_size": (~is_primary).sum(dtype=torch.float64) / len(is_primary),
        "student_primary_mass": student_mass,
        "teacher_primary_mass": teacher_mass,
    }


class _GroupedTerms(torch.autograd.Function):
    """(binary, primary, secondary, log-sum-exps): the first three are scalars to differentiate.

    Kept for backward: both logits, the groups, and log-sum-exps (4, N): student P, student S, teacher P, teacher S.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, is_primary: Tensor, temperature: float, with_secondary: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chunks = [
            _row_terms(student[rows], teacher[rows], is_primary[rows], temperature, with_secondary)
            for rows in row_chunks(student)
        ]
        row_terms = torch.cat([terms for terms, _ in chunks], dim=1)
        group_lse = torch.cat([lse for _, lse in chunks], dim=1)
        ctx.save_for_backward(student, teacher, is_primary, group_lse)
        ctx.mark_non_differentiable(group_lse)
        ctx.temperature = temperature
        binary, primary, secondary = (row_terms.mean(dim=1) * temperature**2).to(compute_dtype(student, teacher))
        return binary, primary, secondary, group_lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_terms: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, is_primary, group_lse = ctx.saved_tensors
        # T²/N of the loss times 1/T of the derivative of logits / T.
        grad_terms_per_row = torch.stack(grad_terms[:3]).double() * (ctx.temperature / len(student))
        grad = torch.empty_like(student)
        for rows in row_chunks(student):
            coefficients = _coefficients(group_lse[:, rows], grad_terms_per_row)
            grad[rows] = _row_gradient(
                student[rows], teacher[rows], is_primary[rows], group_lse[:, rows], coefficients, ctx.temperature
            )
        return grad, None, None, None, None


def _row_terms(
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
    return torch.stack([_binary_divergence(group_lse), primary, secondary]), group_lse


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


def _primary_log_odds(group_lse: Tensor) -> Tensor:
    """log(b_P / b_S) of the student and the teacher: (2, n); +inf where Secondary is empty."""
    return group_lse[0::2] - group_lse[1::2]


def _binary_divergence(group_lse: Tensor) -> Tensor:
    student_odds, teacher_odds = _primary_log_odds(group_lse)
    on_primary = F.logsigmoid(teacher_odds) - F.logsigmoid(student_odds)
    on_secondary = F.logsigmoid(-teacher_odds) - F.logsigmoid(-student_odds)
    divergence: Tensor = teacher_odds.sigmoid() * on_primary + (-teacher_odds).sigmoid() * on_secondary
    return divergence.masked_fill(teacher_odds.isposinf(), 0.0)


def _coefficients(group_lse: Tensor, grad_terms: Tensor) -> Tensor:
    """What multiplies p̂^S on P, p̂^S on S, p̂^T on P and p̂^T on S in the gradient: (4, n)."""
    binary, primary, secondary = grad_terms
    student_odds, teacher_odds = _primary_log_odds(group_lse)
    from_binary = binary * (student_odds.sigmoid() - teacher_odds.sigmoid())
    return torch.stack(
        [
            primary + from_binary,
            secondary - from_binary,
            primary.expand_as(from_binary),
            secondary.expand_as(from_binary),
        ]
    )


def _row_gradient(
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
