"""Grouped Knowledge Distillation over classes that are split over ranks and scored a chunk at a time.

Shapes: N images of all ranks, C classes. Values and gradients are those of `GroupedKD` on the whole (N, C) logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.core import distributed
from gkd.core.class_chunks import Gradient, Primary
from gkd.core.class_prefix import smallest_prefix, smallest_prefix_of_rows
from gkd.core.class_scores import ClassScores
from gkd.core.class_selection import Cutoff, best_classes
from gkd.core.class_shard import ClassShard
from gkd.core.classes import compute_dtype
from gkd.core.errors import ConfigError
from gkd.core.types import Losses
from gkd.distill.grouped_terms import PARTS, binary_divergence, gradient_coefficients, mean_stats, samples_of
from gkd.distill.grouping import CumulativeMass, Grouping, TopK

if TYPE_CHECKING:
    from gkd.distill.gkd import GroupedKD


@dataclass(frozen=True)
class Targets:
    """The logits of the images' own classes: (N,) of the student and of the teacher."""

    student: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class ShardedGroups:
    """What a step needs of the scores once they are gone.

    primary: which entries are Primary; the targets are besides. group_lse: float64 (4, N), log-sum-exps of the logits
    over temperature, of student P, student S, teacher P and teacher S, with the targets. mean_gap: float64 (2, N), the
    mean of u^T - u^S under the teacher's p̂ in each group. group_size: int64 (N,), K.
    """

    primary: Primary
    group_lse: Tensor
    mean_gap: Tensor
    group_size: Tensor


def group_classes(loss: GroupedKD, scores: ClassScores, targets: Targets) -> ShardedGroups:
    """Find the groups and their sums. Collective: every rank calls it with the same images.

    Raises:
        ConfigError: the grouping is none that knows of class shards.
    """
    primary, size = _find_primary(loss.grouping, scores, targets)
    inverse_temperature = 1.0 / loss.temperature
    sums = scores.group_sums(primary, inverse_temperature)
    shard, own_lse = scores.shard, sums.log()
    lse = shard.log_sum_exp(own_lse.clone())
    student, teacher = targets.student.double() * inverse_temperature, targets.teacher.double() * inverse_temperature
    lse[0], lse[2] = torch.logaddexp(lse[0], student), torch.logaddexp(lse[2], teacher)
    # Each rank's sum of gaps is relative to its own greatest teacher score.
    gap = shard.sum(sums.gap * (sums.best[2:].double() - lse[2:]).exp().masked_fill(lse[2:].isneginf(), 0.0))
    gap[0] += (teacher - lse[2]).exp() * (teacher - student)
    return ShardedGroups(primary, lse, gap, size)


def row_terms(groups: ShardedGroups) -> Tensor:
    """Binary, primary and secondary of each image, without T²: float64 (3, N)."""
    lse_gap = groups.group_lse[2:] - groups.group_lse[:2]
    is_empty = groups.group_lse[2:].isneginf()
    inside = (groups.mean_gap - lse_gap).masked_fill(is_empty, 0.0)
    return torch.cat([binary_divergence(groups.group_lse)[None], inside])


def gradient_of(groups: ShardedGroups, grad_terms: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Coefficients and log-sum-exps (4, N) for `class_chunks.write_gradient`.

    Args:
        grad_terms: float64 (3, N), the derivative of the total by each image's binary, primary and secondary, times
            1 / T, that of logits / T.
        dtype: of the entries.
    """
    lse = groups.group_lse.to(dtype)
    # What rounding a log-sum-exp takes away goes into the coefficient: p̂^S - p̂^T is often far smaller than either.
    rounding = (lse.double() - groups.group_lse).exp().masked_fill(lse.isneginf(), 0.0)
    return (gradient_coefficients(groups.group_lse, grad_terms) * rounding).to(dtype), lse


def target_gradient(groups: ShardedGroups, grad_terms: Tensor, targets: Targets, temperature: float) -> Tensor:
    """The derivative by the targets' student logits: float64 (N,); `grad_terms` as for `gradient_of`.

    In float64, for where a target is nearly all of Primary its two shares nearly cancel.
    """
    coefficients = gradient_coefficients(groups.group_lse, grad_terms)
    student = (targets.student.double() / temperature - groups.group_lse[0]).exp()
    teacher = (targets.teacher.double() / temperature - groups.group_lse[2]).exp()
    found: Tensor = coefficients[0] * student - coefficients[2] * teacher
    return found


def samples_of_own(groups: ShardedGroups, own: slice) -> dict[str, Tensor]:
    """What `GroupedKD` shows of each of the images `own`."""
    return samples_of(groups.group_size[own], groups.group_lse[:, own])


def sharded_losses(
    loss: GroupedKD, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, shard: ClassShard
) -> Losses:
    """The losses of `GroupedKD` from this rank's columns of the logits; equal on every rank.

    Args:
        student_logits: (N, K), of the images of all ranks; the only input that gets a gradient: that of the one loss
            that all ranks share.
        teacher_logits: (N, K).
        labels: int64 (N,), in [0, C).

    Raises:
        ConfigError: float64, or a grouping that knows of no class shards.
    """
    if compute_dtype(student_logits, teacher_logits) != torch.float32:
        raise ConfigError("logits over a class shard must be fp32, bf16 or fp16, got float64; convert them")
    *terms, groups = _GivenLogits.apply(student_logits, teacher_logits.detach(), labels, loss, shard)
    samples = samples_of_own(groups, slice(None))
    return loss.weighted(dict(zip(PARTS, terms, strict=True)), mean_stats(samples, shard.num_classes), samples)


class _GivenLogits(torch.autograd.Function):
    """(binary, primary, secondary, ShardedGroups): the first three are scalars to differentiate."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, labels: Tensor, loss: GroupedKD, shard: ClassShard
    ) -> tuple[Any, ...]:
        ctx.scores, ctx.targets = _scores_of_logits(student, teacher, labels, shard)
        ctx.groups = group_classes(loss, ctx.scores, ctx.targets)
        ctx.temperature, ctx.dtype = loss.temperature, student.dtype
        terms = (row_terms(ctx.groups).mean(dim=1) * loss.temperature**2).to(compute_dtype(student, teacher))
        return *terms.unbind(), ctx.groups

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        scores: ClassScores = ctx.scores
        num_rows = len(scores)
        per_row = torch.stack(grads[:3]).double()[:, None].expand(3, num_rows) * (ctx.temperature / num_rows)
        coefficients, lse = gradient_of(ctx.groups, per_row, scores.dtype)
        # There is no cross entropy here: its exponentials count 0 times, and this bound keeps them finite.
        bound = torch.logaddexp(ctx.groups.group_lse[0], ctx.groups.group_lse[1]) * ctx.temperature
        gradient = Gradient(torch.zeros_like(lse[0]), bound.to(scores.dtype), coefficients, lse)
        own = target_gradient(ctx.groups, per_row, ctx.targets, ctx.temperature)
        grad = torch.empty((num_rows, scores.num_columns), dtype=ctx.dtype, device=lse.device)
        for chunk, _, entries in scores.gradients(ctx.groups.primary, 1.0 / ctx.temperature, gradient):
            grad[:, chunk.columns] = scores.put_targets(chunk, entries, own)
        return grad, None, None, None, None


def _scores_of_logits(
    student: Tensor, teacher: Tensor, labels: Tensor, shard: ClassShard
) -> tuple[ClassScores, Targets]:
    dtype = compute_dtype(student, teacher)
    scores = ClassScores(
        shard,
        labels,
        None,
        shard.num_classes,
        lambda columns: student[:, columns].to(dtype, copy=True),
        lambda columns: teacher[:, columns].to(dtype, copy=True),
        dtype=dtype,
    )
    student_targets = scores.of_targets(lambda index: student.gather(1, index))
    return scores, Targets(student_targets, scores.of_targets(lambda index: teacher.gather(1, index)))


def _find_primary(grouping: Grouping, scores: ClassScores, targets: Targets) -> tuple[Primary, Tensor]:
    if not isinstance(grouping, TopK | CumulativeMass):
        raise ConfigError(
            f"the grouping {grouping} needs the logits of all classes; over classes that are split over ranks use "
            "top_k or cumulative_mass"
        )
    is_student = grouping.rank_by == "student"
    size = _sizes(grouping, scores, is_student, targets.student if is_student else targets.teacher)
    cutoff = best_classes(scores.sweep(is_student), size - 1, scores.num_in_play, scores.shard)
    return Primary(cutoff.value, cutoff.last_class, is_student, _has_all_ties(cutoff, scores)), size


def _has_all_ties(cutoff: Cutoff, scores: ClassScores) -> bool:
    """Whether no class of this rank is left out for its index, as is usual; a GPU is not asked, for it would wait."""
    if cutoff.value.device.type != "cpu":
        return False
    return bool(((cutoff.last_class >= scores.shard.stop - 1) | cutoff.value.isposinf()).all())


def _sizes(grouping: TopK | CumulativeMass, scores: ClassScores, is_student: bool, target: Tensor) -> Tensor:
    """K of each image: int64 (N,)."""
    if isinstance(grouping, TopK):
        return torch.full_like(scores.labels, grouping.clamped(scores.num_in_play))
    inverse_temperature = 1.0 / grouping.temperature
    target = target.double() * inverse_temperature
    log_normaliser = torch.logaddexp(scores.log_others(is_student, inverse_temperature), target)
    share = (target - log_normaliser).exp()
    if grouping.scope == "batch":
        masses = scores.masses(is_student, log_normaliser, inverse_temperature)
        if scores.num_columns:
            masses.index_add_(0, scores.position.clamp_min(0), share.masked_fill(scores.position < 0, 0.0))
        num_rows = torch.full_like(share[:1], len(scores))
        if scores.shard.is_whole:  # the ranks, if there are several, have other images, not other classes
            both = distributed.all_reduce_sum(torch.cat([masses, num_rows]))
            masses, num_rows = both[:-1], both[-1:]
        size = smallest_prefix(masses, grouping.threshold * num_rows[0], scores.shard).expand(len(scores))
    else:
        sweep, threshold = scores.sweep(is_student), grouping.threshold
        size = smallest_prefix_of_rows(sweep, log_normaliser, inverse_temperature, threshold, share, scores.shard)
    num_steps = torch.div(size + grouping.k_step - 2, grouping.k_step, rounding_mode="floor")
    return (1 + num_steps * grouping.k_step).clamp_max(scores.num_in_play)
