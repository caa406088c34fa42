"""Knowledge Distillation on softened class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd.core.types import Losses
from gkd.distill.gkd import GroupedKD
from gkd.distill.loss import DistillLoss, check_temperature


class KnowledgeDistillation(DistillLoss):
    """Match the teacher's softened probabilities over all classes.

    With p = softmax(logits / T),
        kl = (T²/N) Σ_n KL(p^T || p^S) = (T²/N) Σ_n Σ_j p_j^T log(p_j^T / p_j^S).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531, section 2:
    cross entropy with soft targets times T². Difference: the teacher's entropy, a constant, is taken off, so that an
    equal student has loss 0; the gradient is the same. Computed by Grouped KD with every class in Primary, so nothing
    of size (N, C) is kept but the logits and a mask, and it cannot be differentiated twice.

    Args:
        temperature: T, above 0.

    Raises:
        ConfigError: a value outside its range.
    """

    needs: frozenset[str] = frozenset({"logits"})

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        self._grouped = GroupedKD(
            temperature=check_temperature("kd", temperature),
            primary_weight=1.0,
            binary_weight=0.0,
            grouping=_every_class,
        )

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Losses:
        """The loss of one batch, in fp32 (float64 where either input is).

        Args:
            student_logits: (N, C); the only input that gets a gradient, in its own type.
            teacher_logits: (N, C), over the same classes.
            labels: int64 (N,), in [0, C); checked, otherwise not used.

        Raises:
            ConfigError: shapes or types do not fit.
            DataError: a label is outside [0, C) (checked on the CPU).
        """
        losses: Losses = self._grouped(student_logits, teacher_logits, labels)
        divergence = losses.parts["primary"]
        return Losses(divergence, {"kl": divergence})

    def extra_repr(self) -> str:
        return f"temperature={self._grouped.temperature}"


def _every_class(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """All of Primary, as a view of one number."""
    return torch.ones((), dtype=torch.bool, device=student_logits.device).expand(student_logits.shape)
