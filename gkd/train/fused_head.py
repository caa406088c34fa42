"""Cross entropy and Grouped Knowledge Distillation over class-sharded weights, with no (N, C) matrix.

The scores of both networks are computed a chunk of classes at a time: once to find each image's groups, once for the
sums, and once more on the way back, where each chunk's gradient goes straight into those of the embeddings and of the
class weights. Values and gradients are those of the softmax head with the same margin and the same loss.

Shapes: n images of this rank, N of all ranks, D embedding dimension, K classes on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gkd.core.class_chunks import Gradient
from gkd.core.class_scores import ClassScores
from gkd.core.classes import check_label_range
from gkd.core.row_shares import RowShares
from gkd.core.scopes import scope
from gkd.core.types import Losses
from gkd.distill import GroupedKD
from gkd.distill.class_sharded import (
    ShardedGroups,
    Targets,
    gradient_of,
    group_classes,
    row_terms,
    samples_of_own,
    target_gradient,
)
from gkd.distill.grouped_terms import PARTS, mean_stats
from gkd.heads import Margin, ShardedHead
from gkd.heads.sharded import ChunkedCosines, ClassesInPlay
from gkd.heads.softmax import unit_vectors


@dataclass(frozen=True)
class TeacherClasses:
    """What a distilled step needs of the teacher and of the term.

    embeddings: (n, D'). weight: (K, D'), its class weights, split over the ranks like the student's. The margins say
    whether the distilled logits carry them.
    """

    embeddings: Tensor
    weight: Tensor
    margin: Margin
    loss: GroupedKD
    is_teacher_margin: bool = True
    is_student_margin: bool = True


def fused_losses(
    head: ShardedHead,
    margin: Margin,
    embeddings: Tensor,
    labels: Tensor,
    step: int,
    teacher: TeacherClasses | None = None,
) -> tuple[Losses, Losses | None]:
    """The cross entropy of this rank's images and, with a teacher, their distillation losses.

    Collective: every rank calls it with its own images. As with DDP, what a rank's losses are is its own; gradients of
    the class weights come divided by the number of ranks, as if DDP had averaged them.

    Args:
        embeddings: (n, D).
        labels: int64 (n,), in [0, C).
        step: the global step.

    Raises:
        DataError: on every rank, where a label of any is outside [0, C) (on CUDA the loss is NaN instead).
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = unit_vectors(embeddings.to(head.weight.dtype))
        pass_ = _Pass(head, margin, labels, step, teacher)
        rows = _FusedRows.apply(unit, head.weight, pass_)
    terms = rows.mean(dim=1)
    classification = Losses(terms[0], {"classification": terms[0]}, pass_.stats(), pass_.samples())
    if teacher is None:
        return classification, None
    parts = dict(zip(PARTS, terms[1:].unbind(), strict=True))
    assert pass_.groups is not None
    samples = samples_of_own(pass_.groups, pass_.shares.own)
    return classification, teacher.loss.weighted(parts, mean_stats(samples, pass_.in_play.num_in_play), samples)


class _Pass:
    """One step's way forward and back. Everything but the rows' gradients is known after `forward`."""

    def __init__(
        self, head: ShardedHead, margin: Margin, labels: Tensor, step: int, teacher: TeacherClasses | None
    ) -> None:
        self.head = head
        self.margin = margin
        self.teacher = teacher
        self.shares = RowShares.of_own(len(labels))
        self.labels = self.shares.gather(labels)
        if labels.device.type == "cpu":  # of all ranks, so that all refuse and none waits for another
            check_label_range(self.labels, head.shard.num_classes)
        self.in_play: ClassesInPlay = head.in_play(self.labels, step)
        self.groups: ShardedGroups | None = None

    @torch.no_grad()
    def forward(self, unit: Tensor, weight: Tensor) -> Tensor:
        """Cross entropy and, with a teacher, T² times the three terms of this rank's images: (1 or 4, n)."""
        in_play = self.in_play
        unit = self.shares.gather(unit)
        self.cosines = ChunkedCosines(unit, weight.detach(), in_play.rows, self.margin.scale, self.head.precision)
        teacher_cosines = self._teacher_cosines()
        self.scores = ClassScores(
            self.head.shard,
            self.labels,
            in_play.classes,
            in_play.num_in_play,
            self.cosines,
            teacher_cosines,
            dtype=weight.dtype,
        )
        self.cosine = self.scores.of_targets(self.cosines.of_each)
        shifted, self.slope = self.margin.shift(self.cosine)
        self.logit = shifted * self.margin.scale
        if teacher_cosines is not None:
            self.targets = self._targets(self.scores.of_targets(teacher_cosines.of_each))
            assert self.teacher is not None
            with scope("distill"):
                self.groups = group_classes(self.teacher.loss, self.scores, self.targets)
        self.lse = torch.logaddexp(self.scores.log_others(is_student=True), self.logit.double())
        rows = [(self.lse - self.logit.double())[None]]
        if self.groups is not None:
            assert self.teacher is not None
            rows.append(row_terms(self.groups) * self.teacher.loss.temperature**2)
        return torch.cat(rows)[:, self.shares.own].to(weight.dtype)

    @torch.no_grad()
    def backward(self, grad_rows: Tensor) -> tuple[Tensor, Tensor]:
        """From the derivative by this rank's rows (1 or 4, n) to those by its unit vectors and by its weights."""
        grad_rows = self.shares.gather(grad_rows.double().T.contiguous()).T
        unit, weight, scale = self.cosines.unit, self.cosines.weight, self.cosines.scale
        gradient, inverse_temperature = self._gradient(grad_rows, weight.dtype)
        at_targets = self._target_gradient(grad_rows)
        grad_unit = torch.zeros_like(unit)
        grad_weight = weight.new_empty((self.scores.num_columns, weight.shape[1]))
        primary = None if self.groups is None else self.groups.primary
        for chunk, scores, entries in self.scores.gradients(primary, inverse_temperature, gradient):
            entries = self.scores.put_targets(chunk, entries.mul_(scale), at_targets)
            scores = self.scores.put_targets(chunk, scores, self.cosine * scale)
            self.cosines.backward(chunk.columns, scores, entries, grad_unit, grad_weight[chunk.columns])
        if len(self.shares.counts) > 1:
            grad_weight.mul_(1.0 / len(self.shares.counts))
        return self.shares.sum(grad_unit), self._as_gradient_of(weight, grad_weight)

    def stats(self) -> dict[str, Tensor]:
        """Training accuracy and mean cosine of this rank's images with their own classes."""
        own = self.shares.own
        is_best = self.cosine * self.margin.scale >= self.scores.best_others()
        return {"accuracy": is_best[own].float().mean(), "target_cosine": self.cosine[own].mean()}

    def samples(self) -> dict[str, Tensor]:
        """The cosine of each of this rank's images with its own class."""
        return {"target_cosine": self.cosine[self.shares.own]}

    def _teacher_cosines(self) -> ChunkedCosines | None:
        teacher = self.teacher
        if teacher is None:
            return None
        unit = self.shares.gather(unit_vectors(teacher.embeddings.to(teacher.weight.dtype)))
        return ChunkedCosines(unit, teacher.weight, self.in_play.rows, teacher.margin.scale, self.head.precision)

    def _targets(self, teacher_cosine: Tensor) -> Targets:
        teacher = self.teacher
        assert teacher is not None
        student_logit = self.logit if teacher.is_student_margin else self.cosine * self.margin.scale
        if teacher.is_teacher_margin:
            teacher_cosine = teacher.margin.shift(teacher_cosine)[0]
        return Targets(student_logit, teacher_cosine * teacher.margin.scale)

    def _gradient(self, grad_rows: Tensor, dtype: torch.dtype) -> tuple[Gradient, float]:
        """What multiplies the exponentials. T² of the loss times the 1/T of the derivative of logits / T is T."""
        class_lse = self.lse.to(dtype)
        class_weight = (grad_rows[0] * (class_lse.double() - self.lse).exp()).to(dtype)
        if self.groups is None:
            return Gradient(class_weight, class_lse), 1.0
        assert self.teacher is not None
        temperature = self.teacher.loss.temperature
        coefficients, group_lse = gradient_of(self.groups, grad_rows[1:] * temperature, dtype)
        return Gradient(class_weight, class_lse, coefficients, group_lse), 1.0 / temperature

    def _target_gradient(self, grad_rows: Tensor) -> Tensor:
        """The derivative by the targets' cosines: (N,)."""
        found = grad_rows[0] * torch.expm1(self.logit.double() - self.lse) * self.slope
        if self.groups is not None:
            assert self.teacher is not None
            slope = self.slope if self.teacher.is_student_margin else torch.ones_like(self.slope)
            temperature = self.teacher.loss.temperature
            found += target_gradient(self.groups, grad_rows[1:] * temperature, self.targets, temperature) * slope
        return (found * self.margin.scale).to(self.cosine.dtype)

    def _as_gradient_of(self, weight: Tensor, grad: Tensor) -> Tensor:
        """The gradient of the weights, sparse where only some rows are in play."""
        rows = self.in_play.rows
        if rows is None:
            return grad
        return torch.sparse_coo_tensor(rows[None], grad, weight.shape, is_coalesced=True, check_invariants=False)


class _FusedRows(torch.autograd.Function):
    """The rows of `_Pass.forward`; its backward goes over the classes once more."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, weight: Tensor, pass_: _Pass) -> Tensor:
        ctx.save_for_backward(weight)  # so that a change of it before the way back is noticed
        ctx.pass_ = pass_
        return pass_.forward(unit, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        assert len(ctx.saved_tensors) == 1
        grad_unit, grad_weight = ctx.pass_.backward(grad_rows)
        return grad_unit, grad_weight, None
