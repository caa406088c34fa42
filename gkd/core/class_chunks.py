"""Sums and gradients over class scores that exist one chunk of classes at a time.

Shapes: N images, c classes of a chunk. S student, T teacher; u = scores / temperature. An image's target takes no part:
its entry holds `EXCLUDED`, whose exponential is 0, and whoever calls adds it. Entries are computed in the type of the
scores, sums over chunks in float64. `gkd.core.class_chunks_triton` does the same for CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# Far below every score, yet finite: differences of two such entries are 0, not NaN.
EXCLUDED = -1e30
# Log-sum-exps below this hold nothing but excluded entries, whatever the temperature.
_EMPTY_BELOW = -1e20


@dataclass
class RunningSum:
    """Σ exp(u) over the chunks so far, as exp(best) · total.

    best: (N,), the greatest u. total: float64 (N,).
    """

    best: Tensor
    total: Tensor

    @classmethod
    def empty(cls, num_rows: int, like: Tensor) -> Self:
        """A sum of nothing, for scores of the type and device of `like`."""
        return cls(
            torch.full((num_rows,), EXCLUDED, dtype=like.dtype, device=like.device),
            torch.zeros(num_rows, dtype=torch.float64, device=like.device),
        )

    def log(self) -> Tensor:
        """The log-sum-exp: float64 (N,), -inf where there was nothing."""
        return _log_of_sum(self.best, self.total)


@dataclass
class GroupSums:
    """Sums over the chunks so far in student Primary, student Secondary, teacher Primary and teacher Secondary.

    best: (4, N) and total: float64 (4, N), as in `RunningSum`. gap: float64 (2, N), of Primary and Secondary,
    Σ exp(u^T - best^T) (u^T - u^S). count: int64 (N,), entries in Primary.
    """

    best: Tensor
    total: Tensor
    gap: Tensor
    count: Tensor

    @classmethod
    def empty(cls, num_rows: int, like: Tensor) -> Self:
        """Sums of nothing, for scores of the type and device of `like`."""
        device = like.device
        return cls(
            torch.full((4, num_rows), EXCLUDED, dtype=like.dtype, device=device),
            torch.zeros((4, num_rows), dtype=torch.float64, device=device),
            torch.zeros((2, num_rows), dtype=torch.float64, device=device),
            torch.zeros(num_rows, dtype=torch.int64, device=device),
        )

    def log(self) -> Tensor:
        """The four log-sum-exps: float64 (4, N), -inf where a group had no entry."""
        return _log_of_sum(self.best, self.total)


@dataclass(frozen=True)
class Gradient:
    """What multiplies the exponentials in the gradient of one step.

    class_weight, class_lse: (N,), of the cross entropy. coefficients: (4, N), of p̂^S on Primary, p̂^S on Secondary, p̂^T
    on Primary and p̂^T on Secondary; group_lse: (4, N), in the order of `GroupSums`. Without a teacher the last two are
    None.
    """

    class_weight: Tensor
    class_lse: Tensor
    coefficients: Tensor | None = None
    group_lse: Tensor | None = None


@dataclass(frozen=True)
class Primary:
    """Which entries are Primary: ranked score > value, or equal to it with a class of at most `last_class`.

    value: (N, 1); last_class: int64 (N, 1). The student's scores are ranked, or else the teacher's. has_all_ties: every
    entry equal to its row's value is Primary, whatever its class.
    """

    value: Tensor
    last_class: Tensor
    ranked_is_student: bool
    has_all_ties: bool = False

    def mask(self, classes: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """1 for Primary and 0 for Secondary, in the type of the scores: (N, c)."""
        ranked = student if self.ranked_is_student else teacher
        inside = torch.empty_like(ranked)
        if self.has_all_ties:
            return torch.ge(ranked, self.value, out=inside)
        ties = torch.eq(ranked, self.value, out=torch.empty_like(ranked))
        ties.mul_((classes <= self.last_class).to(ranked.dtype))
        return torch.gt(ranked, self.value, out=inside).add_(ties)


def add_to_sum(scores: Tensor, running: RunningSum, inverse_temperature: float) -> None:
    """Add the entries of `scores` (N, c)."""
    best = torch.maximum(running.best, scores.amax(dim=1) * inverse_temperature)
    total = _shifted_exp(scores, best, inverse_temperature).sum(dim=1, dtype=torch.float64)
    running.total.mul_((running.best - best).double().exp()).add_(total)
    running.best.copy_(best)


def add_to_groups(
    student: Tensor, teacher: Tensor, primary: Primary, classes: Tensor, inverse_temperature: float, sums: GroupSums
) -> None:
    """Add the entries of both networks' scores (N, c) to the sums of their groups.

    Args:
        classes: int64 (c,), the class of each column, ascending.
    """
    # Masks are numbers: on a CPU comparing into floats and multiplying is many times faster than masked_fill and where.
    is_primary = primary.mask(classes, student, teacher)
    groups = torch.stack([is_primary, 1.0 - is_primary])
    sums.count.add_(is_primary.sum(dim=1).long())
    gap = (teacher - student).mul_(inverse_temperature)
    for row, scores in ((0, student), (2, teacher)):
        scaled = scores * inverse_temperature
        best = torch.stack([torch.add(scaled, other, alpha=EXCLUDED).amax(dim=1) for other in groups.flip(0)])
        best = torch.maximum(sums.best[row : row + 2], best)
        weights = scaled.sub_(_by_group(groups, best)).exp_()
        grown = (sums.best[row : row + 2] - best).double().exp_()
        added = torch.stack([(weights * group).sum(dim=1, dtype=torch.float64) for group in groups])
        sums.total[row : row + 2].mul_(grown).add_(added)
        sums.best[row : row + 2] = best
    # The teacher's come last.
    weights.mul_(gap)
    sums.gap.mul_(grown).add_(torch.stack([(weights * group).sum(dim=1, dtype=torch.float64) for group in groups]))


def write_gradient(
    student: Tensor,
    teacher: Tensor | None,
    primary: Primary | None,
    classes: Tensor,
    inverse_temperature: float,
    gradient: Gradient,
    out: Tensor,
) -> None:
    """The derivative of the total by the student's scores (N, c), into `out`, which may be `student` itself.

    class_weight · exp(z^S - class_lse), and where there is a teacher, in each group
    coefficient · exp(u^S - lse^S) - coefficient · exp(u^T - lse^T).
    """
    total = _shifted_exp(student, gradient.class_lse, 1.0).mul_(gradient.class_weight[:, None])
    if teacher is not None:
        assert primary is not None
        assert gradient.coefficients is not None
        assert gradient.group_lse is not None
        is_primary = primary.mask(classes, student, teacher)
        groups = torch.stack([is_primary, 1.0 - is_primary])
        for row, scores, sign in ((0, student, 1.0), (2, teacher, -1.0)):
            # An empty group's -inf meets no entry, but would meet the excluded one, and 0 · inf.
            lse = gradient.group_lse[row : row + 2]
            shares = (scores * inverse_temperature).sub_(_by_group(groups, lse.masked_fill(lse.isneginf(), 0.0))).exp_()
            total.addcmul_(shares, _by_group(groups, gradient.coefficients[row : row + 2]), value=sign)
    out.copy_(total)


def mass_of_classes(scores: Tensor, log_normaliser: Tensor, inverse_temperature: float, out: Tensor) -> None:
    """Σ_n exp(u_nj - log_normaliser_n) of each class of `scores` (N, c), into float64 `out` (c,)."""
    out.copy_(
        _shifted_exp(scores, log_normaliser.to(scores.dtype), inverse_temperature).sum(dim=0, dtype=torch.float64)
    )


def _by_group(groups: Tensor, values: Tensor) -> Tensor:
    """Each entry's value: that (2, N) of the group (2, N, c) it is in."""
    return (groups[0] * values[0][:, None]).addcmul_(groups[1], values[1][:, None])


def _shifted_exp(scores: Tensor, shift: Tensor, inverse_temperature: float) -> Tensor:
    return (scores * inverse_temperature).sub_(shift[:, None]).exp_()


def _log_of_sum(best: Tensor, total: Tensor) -> Tensor:
    lse = best.double() + total.log()
    return lse.masked_fill((best < _EMPTY_BELOW) | (total == 0), -torch.inf)
