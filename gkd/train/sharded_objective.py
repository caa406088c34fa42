"""Objectives over a head whose classes are split over the ranks."""

from __future__ import annotations

from gkd.core.scopes import scope
from gkd.core.types import Batch, Losses
from gkd.distill import GroupedKD
from gkd.heads import ShardedHead
from gkd.inference.teacher import TeacherViews
from gkd.train.fused_head import TeacherClasses, fused_losses
from gkd.train.objective import ClassificationObjective, DistillationObjective, DistillTerm


class ShardedClassification(ClassificationObjective):
    """`ClassificationObjective` over a sharded head. Its forward is collective."""

    head: ShardedHead

    def forward(self, batch: Batch) -> Losses:
        """Losses of `batch`, as of the softmax head."""
        embeddings = self.embed(batch)
        with scope("head"):
            return fused_losses(self.head, self.margin, embeddings, batch.labels, self.step)[0]


class ShardedDistillation(DistillationObjective):
    """`DistillationObjective` over a sharded head, with at most one term on logits: Grouped KD.

    The teacher's class weights are split over the ranks like the student's. Forward is collective.
    """

    head: ShardedHead

    def share_out_teacher(self) -> None:
        """Let the teacher keep the class weights of this rank only; called before the first step."""
        self.__dict__["teacher"].keep_classes(self.head.shard)

    def forward(self, batch: Batch) -> Losses:
        """Losses of `batch`, as of the softmax head."""
        embeddings = self.embed(batch)
        with scope("teacher head"):
            teacher: TeacherViews = self.__dict__["teacher"](batch)  # after the student, which it may compute beside
        compared = next((term for term in self.terms if "logits" in term.loss.needs), None)
        classes = None if compared is None else self._teacher_classes(teacher, compared)
        with scope("head"):
            classification, distilled = fused_losses(
                self.head, self.margin, embeddings, batch.labels, self.step, classes
            )

        def losses_of(term: DistillTerm) -> Losses:
            if term is compared:
                assert distilled is not None
                return distilled
            losses: Losses = term.loss(embeddings, teacher.embeddings, batch.labels)
            return losses

        with scope("distill"):
            return self.add_terms(classification, losses_of)

    def _teacher_classes(self, teacher: TeacherViews, term: DistillTerm) -> TeacherClasses:
        assert isinstance(term.loss, GroupedKD)
        weight = self.__dict__["teacher"].head.weight
        assert len(weight) == self.head.shard.size, "the teacher keeps the classes of this rank"
        return TeacherClasses(
            teacher.as_given,
            weight,
            self.teacher_margin,
            term.loss,
            is_teacher_margin=term.teacher_margin,
            is_student_margin=term.student_margin,
        )
