"""What all distillation losses share."""

from __future__ import annotations

from torch import Tensor, nn

from gkd.core.classes import check_labels
from gkd.core.errors import ConfigError
from gkd.core.types import Losses


class DistillLoss(nn.Module):
    """A loss between what the student and the teacher show of one batch; no gradient reaches the teacher.

    `needs` names the tensors it is called with, student's then teacher's for each, before the labels.
    """

    needs: frozenset[str]

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Losses:
        raise NotImplementedError


def check_logits(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
    """Refuse logits of different shapes, and labels that do not fit them.

    Raises:
        ConfigError: shapes or types do not fit.
        DataError: a label is outside [0, C) (checked on the CPU).
    """
    if student_logits.shape != teacher_logits.shape or not teacher_logits.is_floating_point():
        raise ConfigError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} must be "
            "floating-point (N, C) of equal shape: both heads need the same classes in the same order"
        )
    check_labels(labels, student_logits)
