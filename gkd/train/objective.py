"""What is trained: a batch becomes named losses. The trainer knows nothing else.

N images, D embedding dimension, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.core.class_shard import ClassShard
from gkd.core.compiling import CompiledFunction
from gkd.core.errors import ConfigError
from gkd.core.scopes import scope
from gkd.core.types import Batch, Losses, Views
from gkd.distill import DistillLoss
from gkd.heads import Head, Margin, ShardedHead, SoftmaxHead
from gkd.models import InputSpec


class ClassificationObjective(nn.Module):
    """Cross entropy over margin logits: an undistilled run, and the first term of a distilled one.

    loss = -1/N sum_n log softmax(margin(cos(theta_n), y_n))[y_n]
    """

    head: Head
    compiled: CompiledFunction | None

    # What compiles the backbone.
    _compiler: str | Callable[..., Any] = "inductor"

    def __init__(self, backbone: nn.Module, head: Head, margin: Margin, input_spec: InputSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.margin = margin
        self.input_spec = input_spec
        self.step = 0  # the global step, set by the trainer: the only clock
        self.memory_format = torch.preserve_format  # of the images that the backbone gets; else as they come
        self.__dict__["compiled"] = None
        # Parameters that hold only this rank's classes, by name; DDP, clipping and checkpoints treat them apart.
        self.class_shards: dict[str, ClassShard] = {}
        if isinstance(head, ShardedHead):
            self.class_shards["head.weight"] = head.shard

    def forward(self, batch: Batch) -> Losses:
        """Losses of `batch`: `parts["classification"]` and, as statistics, the batch's training accuracy."""
        with scope("head"):  # and within it the student
            _, _, losses = self.classify(batch)
        return losses

    def look_ahead(self, batches: Sequence[Batch]) -> None:
        """Be told the micro-batches of the coming step; here there is nothing to prepare."""

    def take_teacher_seconds(self) -> float | None:
        """Seconds spent on a teacher since last asked; None where there is none, or they are not known."""
        return None

    def embed(self, batch: Batch) -> Tensor:
        """The student's embeddings (N, D)."""
        with scope("student"):
            inputs = self.input_spec.convert(batch.images).to(memory_format=self.memory_format)
            embeddings: Tensor = self.backbone(inputs) if self.compiled is None else self.compiled(inputs)
        return embeddings

    def compile_backbone(self) -> None:
        """Run the backbone through `torch.compile` in training; where that fails, a warning says so."""
        self.__dict__["compiled"] = CompiledFunction(
            self.backbone, "the backbone", "train.compile", self._compiler, trained=self.backbone
        )

    def classify(self, batch: Batch) -> tuple[Views, Tensor, Losses]:
        """The student's embeddings (N, D) and cosines (N, C), its margin logits (N, C) and its cross entropy."""
        embeddings = self.embed(batch)
        assert isinstance(self.head, SoftmaxHead)
        cosine = self.head.cosine(embeddings)
        logits: Tensor = self.margin(cosine, batch.labels)
        loss = F.cross_entropy(logits, batch.labels)
        with torch.no_grad():
            accuracy = (cosine.argmax(1) == batch.labels).float().mean()
            target_cosine = cosine.gather(1, batch.labels[:, None]).squeeze(1)
        stats = {"accuracy": accuracy, "target_cosine": target_cosine.mean()}
        samples = {"target_cosine": target_cosine}
        return Views(embeddings, cosine), logits, Losses(loss, {"classification": loss}, stats, samples)


@dataclass(frozen=True)
class DistillTerm:
    """One distillation loss with its place in the total.

    weight at an epoch: `weight` * min(epoch / warmup_epochs, 1) with epoch = floor(step / steps_per_epoch), from 0;
    Source: the released recipe of Grouped KD (w = min(epoch / 10, 1)). `student_margin` and `teacher_margin` say
    whether the distilled logits carry the margin on that side; a loss that needs no logits has no use for them.
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

    loss = CE + sum_t w_t(epoch) * L_t(what the student and the teacher show, labels)

    Parameters of the terms' losses are parameters of the objective: trained, and kept in checkpoints.

    Raises:
        ConfigError: two terms have one name.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        margin: Margin,
        input_spec: InputSpec,
        teacher: nn.Module,
        teacher_margin: Margin,
        terms: Sequence[DistillTerm],
        steps_per_epoch: int,
    ) -> None:
        super().__init__(backbone, head, margin, input_spec)
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise ConfigError(f"distillation terms must have different names, got {', '.join(names)}; rename one")
        # Not registered as a sub-module: the teacher stays out of DDP, of checkpoints and of train().
        self.__dict__["teacher"] = teacher
        self.teacher_margin = teacher_margin
        self.terms = tuple(terms)
        self.term_losses = nn.ModuleDict({term.name: term.loss for term in terms})
        self.steps_per_epoch = steps_per_epoch

    def look_ahead(self, batches: Sequence[Batch]) -> None:
        """Let the teacher embed the images of the coming step's micro-batches together."""
        self.__dict__["teacher"].look_ahead(batches)

    def take_teacher_seconds(self) -> float | None:
        """Seconds spent on the teacher's embeddings since last asked; None where they are not known."""
        seconds: float | None = self.__dict__["teacher"].take_seconds()
        return seconds

    def forward(self, batch: Batch) -> Losses:
        """Losses of `batch`: the cross entropy and every term's parts under `<term>/<part>`, unweighted.

        Raises:
            ConfigError: a term needs logits and the teacher shows none.
        """
        with scope("head"):  # and within it the student
            student, margin_logits, losses = self.classify(batch)
        with scope("teacher head"):
            teacher: Views = self.__dict__["teacher"](batch)  # after the student, beside which it may still compute

        def losses_of(term: DistillTerm) -> Losses:
            tensors = self._term_tensors(term, student, margin_logits, teacher, batch.labels)
            term_losses: Losses = term.loss(*tensors, batch.labels)
            return term_losses

        with scope("distill"):
            return self.add_terms(losses, losses_of)

    def add_terms(self, losses: Losses, losses_of: Callable[[DistillTerm], Losses]) -> Losses:
        """The cross entropy `losses` with every term's weighted losses, as `losses_of` gives them."""
        total, parts, stats, samples = losses.total, dict(losses.parts), dict(losses.stats), dict(losses.samples)
        for term in self.terms:
            weight = term.weight_at(self.step // self.steps_per_epoch)
            term_losses = losses_of(term)
            total = total + weight * term_losses.total
            parts |= {f"{term.name}/{name}": part for name, part in term_losses.parts.items()}
            parts[f"{term.name}/weighted"] = weight * term_losses.total
            stats |= {f"{term.name}/{name}": value for name, value in term_losses.stats.items()}
            stats[f"{term.name}/weight"] = total.new_tensor(weight)
            samples |= {f"{term.name}/{name}": values for name, values in term_losses.samples.items()}
        return Losses(total, parts, stats, samples)

    def _term_tensors(
        self, term: DistillTerm, student: Views, margin_logits: Tensor, teacher: Views, labels: Tensor
    ) -> list[Tensor]:
        """What the term's loss needs, in the order of `NEEDS`, the student's before the teacher's."""
        tensors: list[Tensor] = []
        if "logits" in term.loss.needs:
            assert student.logits is not None
            student_logits = margin_logits if term.student_margin else self.margin.plain(student.logits)
            tensors += [student_logits, self._teacher_logits(teacher, labels, term)]
        if "embeddings" in term.loss.needs:
            tensors += [student.embeddings, teacher.embeddings]
        return tensors

    def _teacher_logits(self, teacher: Views, labels: Tensor, term: DistillTerm) -> Tensor:
        if teacher.logits is None:
            raise ConfigError(
                f"the distillation loss {term.name} compares class logits and the teacher has no class weights; use a "
                "teacher with its head.pt, or a loss on embeddings"
            )
        if term.teacher_margin:
            with_margin: Tensor = self.teacher_margin(teacher.logits, labels)
            return with_margin
        return self.teacher_margin.plain(teacher.logits)
