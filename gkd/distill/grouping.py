"""Which classes of each sample are Primary.

The rule in both groupings: Primary is the target and the K - 1 best other classes by the ranked network's logits, the
lower class index first where logits are equal; the rest is Secondary. K = 1 is the target alone. K is found on the
natural order of the classes, the target being treated like any other.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor

from gkd.core.class_prefix import num_short
from gkd.core.classes import compute_dtype, has_long_rows, row_chunks, top_k_mask
from gkd.core.distributed import all_reduce_sum
from gkd.core.errors import ConfigError
from gkd.distill.class_mass import batch_masses, row_powers
from gkd.distill.loss import check_logits

_log = logging.getLogger(__name__)

RankBy = Literal["student", "teacher"]


class Grouping(Protocol):
    """(student_logits (N, C), teacher_logits (N, C), labels (N,)) -> bool (N, C), True for Primary."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor: ...


class RankedGrouping(ABC):
    """A grouping by rank: Primary is the target and the K - 1 best other classes; subclasses choose K."""

    rank_by: RankBy

    @torch.no_grad()
    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Primary as bool (N, C). Where K looks at the global batch, every rank must call it, once per step."""
        check_logits(student_logits, teacher_logits, labels)
        ranked = student_logits if self.rank_by == "student" else teacher_logits
        return target_and_best_others(ranked, labels, self.primary_sizes(ranked))

    @abstractmethod
    def primary_sizes(self, ranked: Tensor) -> int | Tensor:
        """K for the ranked network's logits (N, C): a number, or int64 (1, 1) for all rows or (N, 1)."""


class TopK(RankedGrouping):
    """A fixed K: the target and the k - 1 best other classes of each sample.

    With k at or above the number of classes everything is Primary and Binary is 0; that is logged once as a warning.

    Source: the fixed form of the authors' public code of Grouped Knowledge Distillation (AAAI 2023), K = 10,000 of
    85,742; there a target outside the top K is added as one class more.

    Args:
        k: size of Primary, at least 1.
        rank_by: the network whose logits order the classes.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(self, *, k: int = 10_000, rank_by: RankBy = "student") -> None:
        _check_count("k", k)
        _check_choice("rank_by", rank_by, ("student", "teacher"))
        self.k = k
        self.rank_by = rank_by
        self._has_warned = False

    def primary_sizes(self, ranked: Tensor) -> int:
        return self.clamped(ranked.shape[1])

    def clamped(self, num_classes: int) -> int:
        """k, or the number of classes in play where that is smaller, with a warning the first time."""
        if self.k >= num_classes and not self._has_warned:
            _log.warning("grouping.k is %d and %d classes are in play: Secondary is empty", self.k, num_classes)
            self._has_warned = True
        return min(self.k, num_classes)

    def __repr__(self) -> str:
        return f"TopK(k={self.k}, rank_by={self.rank_by})"


class CumulativeMass(RankedGrouping):
    """The smallest K whose best classes hold a share `threshold` of the ranked network's probability.

    batch: class probabilities are summed over the global batch (all ranks), sorted, and K is the smallest of
    {1, 1 + k_step, 1 + 2·k_step, …} whose sum reaches threshold·N, or C where none does; each sample then takes its own
    K best. sample: the same with each sample's own probabilities, so each has its own K.

    Source: Zhao et al., "Grouped Knowledge Distillation for Deep Face Recognition", AAAI 2023, figure 2 (threshold on
    the student's cumulative probability), and the adaptive form of the authors' public code (batch, k_step 100). The
    probabilities there are softmax(logits / 1) of scaled logits with margin, whatever the temperature of the loss.

    Args:
        threshold: share of the probability, in (0, 1].
        rank_by: the network whose logits order the classes and whose probabilities are summed.
        temperature: of those probabilities; not the loss's.
        scope: "batch" for one K a step, "sample" for one K a sample.
        k_step: distance of the values that K may take.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.93,
        rank_by: RankBy = "student",
        temperature: float = 1.0,
        scope: Literal["batch", "sample"] = "batch",
        k_step: int = 1,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"grouping.threshold must lie in (0, 1], got {threshold}; the paper uses 0.93")
        if not (math.isfinite(temperature) and temperature > 0):
            raise ConfigError(f"grouping.temperature must be a number above 0, got {temperature}")
        _check_choice("rank_by", rank_by, ("student", "teacher"))
        _check_choice("scope", scope, ("batch", "sample"))
        _check_count("k_step", k_step)
        self.threshold = float(threshold)
        self.rank_by = rank_by
        self.temperature = float(temperature)
        self.scope = scope
        self.k_step = k_step

    @torch.no_grad()
    def primary_sizes(self, ranked: Tensor) -> Tensor:
        return self._batch_k(ranked) if self.scope == "batch" else self._sample_k(ranked)

    def _batch_k(self, ranked: Tensor) -> Tensor:
        mass = torch.zeros(ranked.shape[1] + 1, dtype=torch.float64, device=ranked.device)
        if has_long_rows(ranked):
            mass[:-1] = batch_masses(ranked, self.temperature)
        else:
            for rows in row_chunks(ranked):
                mass[:-1] += self._probabilities(ranked[rows]).sum(dim=0, dtype=torch.float64)
        mass[-1] = len(ranked)  # the number of samples travels with the masses: one collective
        all_reduce_sum(mass)
        if has_long_rows(ranked):
            short = num_short(mass[:-1], self.threshold * mass[-1].item())
            return self._on_grid(torch.tensor([[short]]), ranked.shape[1])
        return self._smallest_k(mass[None, :-1], self.threshold * mass[-1])

    def _sample_k(self, ranked: Tensor) -> Tensor:
        if has_long_rows(ranked):
            rows = row_powers(ranked, self.temperature)
            short = [num_short(row, self.threshold * row.sum(dtype=torch.float64).item()) for row in rows]
            return self._on_grid(torch.tensor(short)[:, None], ranked.shape[1])
        chunks = (self._probabilities(ranked[rows]) for rows in row_chunks(ranked))
        return torch.cat([self._smallest_k(mass, self.threshold) for mass in chunks])

    def _probabilities(self, ranked: Tensor) -> Tensor:
        return (ranked.to(compute_dtype(ranked)) / self.temperature).softmax(dim=1)

    def _smallest_k(self, mass: Tensor, due: Tensor | float) -> Tensor:
        """K of each row of `mass` (rows, C): int64 (rows, 1)."""
        reached = mass.sort(dim=1, descending=True).values.cumsum(dim=1, dtype=torch.float64)
        return self._on_grid((reached < due).sum(dim=1, keepdim=True), mass.shape[1])

    def _on_grid(self, num_short: Tensor, num_classes: int) -> Tensor:
        """The least value that K may take where the best 1 ... num_short classes do not suffice."""
        num_steps = torch.div(num_short + self.k_step - 1, self.k_step, rounding_mode="floor")
        return (1 + num_steps * self.k_step).clamp_max(num_classes)

    def __repr__(self) -> str:
        return (
            f"CumulativeMass(threshold={self.threshold}, rank_by={self.rank_by}, temperature={self.temperature}, "
            f"scope={self.scope}, k_step={self.k_step})"
        )


def target_and_best_others(ranked: Tensor, labels: Tensor, k: int | Tensor) -> Tensor:
    """The target and the k - 1 best other classes of each row of `ranked` (N, C), as bool (N, C).

    `k` is a number, or int64 (1, 1) for all rows or (N, 1).
    """
    is_primary = torch.empty(ranked.shape, dtype=torch.bool, device=ranked.device)
    for rows in row_chunks(ranked):
        # With the target made the best of all, the k best are the target and the k - 1 best others.
        scores = ranked[rows].scatter(1, labels[rows, None], math.inf)
        is_primary[rows] = top_k_mask(scores, k[rows] if isinstance(k, Tensor) and len(k) > 1 else k)
    return is_primary


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"grouping.{name} must be a whole number of at least 1, got {value}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"grouping.{name} must be one of {', '.join(choices)}; got `{value}`")
