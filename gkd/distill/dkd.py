"""Decoupled Knowledge Distillation: the target against all others, and the others among themselves."""

from __future__ import annotations

from torch import Tensor

from gkd.core.types import Losses
from gkd.distill.gkd import GroupedKD
from gkd.distill.grouping import TopK
from gkd.distill.loss import DistillLoss, check_temperature, check_weights

# DKD's terms by the names that they have where the target alone is Primary.
_PARTS = {"binary": "target", "secondary": "non_target"}


class DecoupledKD(DistillLoss):
    """Match the teacher's probability of the target, and its probabilities among the other classes.

    With p = softmax(logits / T), target y, b = (p_y, 1 - p_y) and p̂_j = p_j / (1 - p_y) for j ≠ y,
        target     = (T²/N) Σ_n KL(b^T || b^S)                        (TCKD)
        non_target = (T²/N) Σ_n KL(p̂^T || p̂^S)                        (NCKD)
        total      = target_weight·target + non_target_weight·non_target.
    KL(p^T || p^S) is exactly TCKD + (1 - p_y^T)·NCKD for each sample; DKD drops the factor, which is near 0 where the
    teacher is sure.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, section 3, and
    the authors' public code (T², T = 4, weights 1 and 8). Differences: the target is left out of the second softmax
    exactly, not by taking 1000 off its logit, and masses come from log-sum-exps. It is computed by Grouped KD with the
    target alone in Primary and cannot be differentiated twice.

    Args:
        temperature: T, above 0.
        target_weight: of target (alpha), at least 0.
        non_target_weight: of non_target (beta), at least 0; at 0 it is not computed.

    Raises:
        ConfigError: a value outside its range.
    """

    needs: frozenset[str] = frozenset({"logits"})

    def __init__(self, *, temperature: float = 4.0, target_weight: float = 1.0, non_target_weight: float = 8.0) -> None:
        super().__init__()
        self.weights = check_weights("dkd", {"target": target_weight, "non_target": non_target_weight})
        self._grouped = GroupedKD(
            temperature=check_temperature("dkd", temperature),
            primary_weight=0.0,
            binary_weight=self.weights["target"],
            secondary_weight=self.weights["non_target"],
            grouping=TopK(k=1),
        )

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Losses:
        """The losses of one batch, in fp32 (float64 where either input is).

        Args:
            student_logits: (N, C); the only input that gets a gradient, in its own type.
            teacher_logits: (N, C), over the same classes.
            labels: int64 (N,), in [0, C).

        Returns:
            Losses with stats `student_target_mass` and `teacher_target_mass` (mean p_y at temperature T).

        Raises:
            ConfigError: shapes or types do not fit.
            DataError: a label is outside [0, C) (checked on the CPU).
        """
        losses: Losses = self._grouped(student_logits, teacher_logits, labels)
        parts = {ours: losses.parts[name] for name, ours in _PARTS.items() if name in losses.parts}
        names = {f"{side}_target_mass": f"{side}_primary_mass" for side in ("student", "teacher")}
        stats = {ours: losses.stats[name] for ours, name in names.items()}
        samples = {ours: losses.samples[name] for ours, name in names.items()}
        return Losses(losses.total, parts, stats, samples)

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name}_weight={weight}" for name, weight in self.weights.items())
        return f"temperature={self._grouped.temperature}, {weights}"
