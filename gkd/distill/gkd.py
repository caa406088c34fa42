"""Grouped Knowledge Distillation with a closed-form backward.

Shapes: N images, C classes. S student, T teacher (superscript); P Primary, S Secondary (subscript).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gkd.core.class_shard import ClassShard
from gkd.core.classes import compute_dtype, has_long_rows
from gkd.core.errors import ConfigError
from gkd.core.types import Losses
from gkd.distill.class_sharded import sharded_losses
from gkd.distill.grouped_rows import RankedTerms
from gkd.distill.grouped_terms import PARTS, GroupedTerms, mean_stats, samples_of
from gkd.distill.grouping import CumulativeMass, Grouping, RankedGrouping
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
    finite loss, not NaN. The gradient is computed from its formula; on the CPU, with many classes, that happens in the
    forward pass, row by row. It cannot be differentiated twice.

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

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, shard: ClassShard | None = None
    ) -> Losses:
        """The losses of one batch, in fp32 (float64 where either input is).

        Args:
            student_logits: (N, C); the only input that gets a gradient, in its own type.
            teacher_logits: (N, C), over the same classes.
            labels: int64 (N,), in [0, C).
            shard: where the classes are split over ranks, this rank's: both logits are then (N, K), its columns, of the
                images of all ranks, in fp32 or less. Every rank must call it, and the losses are equal on all.

        Returns:
            Losses with stats `group_size` and `secondary_size` (mean sizes of both groups), `student_primary_mass` and
            `teacher_primary_mass` (mean b_P at temperature T).

        Raises:
            ConfigError: shapes or types do not fit.
            DataError: a label is outside [0, C) (checked on the CPU).
        """
        check_logits(student_logits, teacher_logits, labels, shard)
        teacher_logits = teacher_logits.detach()
        if shard is not None:
            return sharded_losses(self, student_logits, teacher_logits, labels, shard)
        if isinstance(self.grouping, RankedGrouping) and has_long_rows(student_logits):
            if student_logits.is_cuda and compute_dtype(student_logits, teacher_logits) == torch.float32:
                whole = ClassShard(student_logits.shape[1], 0, student_logits.shape[1])
                return sharded_losses(self, student_logits, teacher_logits, labels, whole)
            if not student_logits.is_cuda and self.weights["secondary"] == 0:
                return self._by_rank(self.grouping, student_logits, teacher_logits, labels)
        return self._by_mask(student_logits, teacher_logits, labels)

    def _by_mask(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Losses:
        is_primary = self.grouping(student_logits.detach(), teacher_logits, labels)
        with_secondary = self.weights["secondary"] != 0
        *terms, group_lse = GroupedTerms.apply(
            student_logits, teacher_logits, is_primary, self.temperature, with_secondary
        )
        parts = dict(zip(PARTS, terms, strict=True))
        samples = samples_of(is_primary.sum(dim=1), group_lse)
        return self.weighted(parts, mean_stats(samples, is_primary.shape[1]), samples)

    def weighted(self, parts: dict[str, Tensor], stats: dict[str, Tensor], samples: dict[str, Tensor]) -> Losses:
        """The total of the unweighted `parts`; secondary is left out where its weight is 0."""
        if self.weights["secondary"] == 0:
            parts = {name: part for name, part in parts.items() if name != "secondary"}
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return Losses(total, parts, stats, samples)

    def _by_rank(
        self, grouping: RankedGrouping, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> Losses:
        ranked = student_logits.detach() if grouping.rank_by == "student" else teacher_logits
        k = torch.as_tensor(grouping.primary_sizes(ranked)).view(-1)
        weights = (self.weights["binary"], self.weights["primary"])
        total, binary, primary, group_lse = RankedTerms.apply(
            # Without autograd a student that could get a gradient should not cost one.
            student_logits if torch.is_grad_enabled() else student_logits.detach(),
            teacher_logits,
            labels,
            k,
            grouping.rank_by,
            self.temperature,
            weights,
        )
        samples = samples_of(k, group_lse)
        return Losses(
            total, {"binary": binary, "primary": primary}, mean_stats(samples, student_logits.shape[1]), samples
        )

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name}_weight={weight}" for name, weight in self.weights.items())
        return f"temperature={self.temperature}, {weights}, grouping={self.grouping}"
