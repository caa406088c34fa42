"""What is trained: a batch becomes named losses. The trainer knows nothing else.

N images, D embedding dimension, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.core.types import Batch, Losses, Views
from gkd.heads import SoftmaxHead
from gkd.models import InputSpec


class Margin(Protocol):
    """Cosines and labels to scaled logits, with the margin or without."""

    def __call__(self, cosine: Tensor, labels: Tensor) -> Tensor: ...

    def plain(self, cosine: Tensor) -> Tensor: ...


class DistillLoss(Protocol):
    """Student and teacher tensors, of the kinds it `needs`, to losses."""

    needs: frozenset[str]

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Losses: ...


class ClassificationObjective(nn.Module):
    """Cross entropy over margin logits: an undistilled run, and the first term of a distilled one.

    loss = -1/N sum_n log softmax(margin(cos(theta_n), y_n))[y_n]
    """

    head: SoftmaxHead

    def __init__(self, backbone: nn.Module, head: SoftmaxHead, margin: Margin, input_spec: InputSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.margin = margin
        self.input_spec = input_spec
        self.step = 0  # the global step, set by the trainer: the only clock

    def forward(self, batch: Batch) -> Losses:
        """Losses of `batch`: `parts["classification"]` and, as statistics, the batch's training accuracy."""
        _, _, losses = self.classify(batch)
        return losses

    def classify(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        """The cosines (N, C), the margin logits (N, C) and the cross entropy of `batch`."""
        embeddings = self.backbone(self.input_spec.convert(batch.images))
        cosine = self.head.cosine(embeddings)
        logits = self.margin(cosine, batch.labels)
        loss = F.cross_entropy(logits, batch.labels)
        with torch.no_grad():
            accuracy = (cosine.argmax(1) == batch.labels).float().mean()
            target_cosine = cosine.gather(1, batch.labels[:, None]).mean()
        stats = {"accuracy": accuracy, "target_cosine": target_cosine}
        return cosine, logits, Losses(loss, {"classification": loss}, stats)


@dataclass(frozen=True)
class DistillTerm:
    """One distillation loss with its place in the total.

    weight at an epoch: `weight` * min(epoch / warmup_epochs, 1) with epoch = floor(step / steps_per_epoch), from 0;
    Source: the released recipe of Grouped KD (w = min(epoch / 10, 1)). `student_margin` and `teacher_margin` say
    whether the distilled logits carry the margin on that side.
    """

    name: str
    loss: DistillLoss
    weight: float = 1.0
    warmup_epochs: int = 10
    student_margin: bool = True
    teacher_margin: bool = True

    def weight_at(self, epoch: int) -> float:
        """The weight of this term in `epoch`."""
        return self.weight * (min(epoch / self.warmup_epochs, 1.0) if self.warmup_epochs > 0 else 1.0)


class DistillationObjective(ClassificationObjective):
    """Cross entropy plus weighted distillation terms against a frozen teacher.

    loss = CE + sum_t w_t(epoch) * L_t(student logits, teacher logits, labels)
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: SoftmaxHead,
        margin: Margin,
        input_spec: InputSpec,
        teacher: nn.Module,
        teacher_margin: Margin,
        terms: Sequence[DistillTerm],
        steps_per_epoch: int,
    ) -> None:
        super().__init__(backbone, head, margin, input_spec)
        # Not registered as a sub-module: the teacher stays out of DDP, of checkpoints and of train().
        self.__dict__["teacher"] = teacher
        self.teacher_margin = teacher_margin
        self.terms = tuple(terms)
        self.steps_per_epoch = steps_per_epoch

    def forward(self, batch: Batch) -> Losses:
        """Losses of `batch`: the cross entropy and every term's parts under `<term>/<part>`, unweighted."""
        teacher: Views = self.__dict__["teacher"](batch)
        cosine, margin_logits, losses = self.classify(batch)
        total, parts, stats = losses.total, dict(losses.parts), dict(losses.stats)
        for term in self.terms:
            weight = term.weight_at(self.step // self.steps_per_epoch)
            student_logits = margin_logits if term.student_margin else self.margin.plain(cosine)
            term_losses = term.loss(student_logits, self._teacher_logits(teacher, batch.labels, term), batch.labels)
            total = total + weight * term_losses.total
            parts |= {f"{term.name}/{name}": part for name, part in term_losses.parts.items()}
            parts[f"{term.name}/weighted"] = weight * term_losses.total
            stats |= {f"{term.name}/{name}": value for name, value in term_losses.stats.items()}
            stats[f"{term.name}/weight"] = total.new_tensor(weight)
        return Losses(total, parts, stats)

    def _teacher_logits(self, teacher: Views, labels: Tensor, term: DistillTerm) -> Tensor:
        assert teacher.logits is not None
        if term.teacher_margin:
            return self.teacher_margin(teacher.logits, labels)
        return self.teacher_margin.plain(teacher.logits)
