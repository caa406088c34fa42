"""Class scores of one step that are computed a chunk of classes at a time, as often as they are needed.

Shapes: N images of the global micro-batch, M classes in play on this rank, c classes of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gkd.core.chunk_kernels import chunk_kernels
from gkd.core.class_chunks import EXCLUDED, Gradient, GroupSums, Primary, RunningSum
from gkd.core.class_shard import ClassShard

# Scores of a slice of the classes in play, possibly with a stride: a new tensor (N, c), fp32 or float64.
Scores = Callable[[slice], Tensor]

_CPU_CHUNK_ENTRIES = 2**15
_GPU_CHUNK_ENTRIES = 2**25


def chunk_columns(num_rows: int, device: torch.device) -> int:
    """How many classes a chunk holds, so that a few matrices of (N, c) are small beside everything else."""
    entries = _CPU_CHUNK_ENTRIES if device.type == "cpu" else _GPU_CHUNK_ENTRIES
    return max(64, entries // max(1, num_rows) // 64 * 64)


@dataclass(frozen=True)
class Chunk:
    """Some classes in play: their columns among all of them, and their class indices, int64 (c,), ascending."""

    columns: slice
    classes: Tensor


class ClassScores:
    """One network's or two networks' scores over the classes in play, of which this rank holds some.

    Every sweep has the same chunks with the same borders, and gives the same bits. In every chunk the entries of the
    images' targets hold `EXCLUDED`.

    Args:
        shard: this rank's share of the classes.
        labels: int64 (N,), of the images of all ranks.
        classes: int64 (M,), this rank's classes in play, ascending; targets are always among them. None
            for all of the shard's.
        num_in_play: how many classes are in play on all ranks.
        student: gives the student's scores.
        teacher: gives the teacher's, where there is one.
        dtype: of the scores.

    Attributes:
        num_columns: M.
        position: int64 (N,), the column of each image's target on this rank, -1 where another rank holds it.
    """

    def __init__(
        self,
        shard: ClassShard,
        labels: Tensor,
        classes: Tensor | None,
        num_in_play: int,
        student: Scores,
        teacher: Scores | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shard = shard
        self.labels = labels
        self.classes = classes
        self.num_in_play = num_in_play
        self._networks = {True: student, False: teacher}
        self.dtype = dtype
        self._like = torch.empty(0, dtype=dtype, device=labels.device)
        self._step = chunk_columns(len(labels), labels.device)
        self.num_columns = shard.size if classes is None else len(classes)
        column = labels - shard.start if classes is None else torch.searchsorted(classes, labels)
        self.position = torch.where(shard.holds(labels), column, -1)
        self._sums: dict[tuple[bool, float], RunningSum] = {}

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.labels)

    def chunks(self, stride: int = 1) -> Iterator[Chunk]:
        """All chunks; with a stride, only every so manieth class of each."""
        for start in range(0, self.num_columns, self._step):
            columns = slice(start, min(start + self._step, self.num_columns), stride)
            yield Chunk(columns, self._classes(columns))

    def _classes(self, columns: slice) -> Tensor:
        """int64 (c,), the class indices of these columns."""
        if self.classes is not None:
            return self.classes[columns]
        first = self.shard.start
        return torch.arange(first + columns.start, first + columns.stop, columns.step or 1, device=self.labels.device)

    def of(self, is_student: bool, chunk: Chunk) -> Tensor:
        """A network's scores (N, c), targets excluded."""
        network = self._networks[is_student]
        assert network is not None, "there is no teacher"
        return self.put_targets(chunk, network(chunk.columns), None)

    def put_targets(self, chunk: Chunk, scores: Tensor, values: Tensor | None) -> Tensor:
        """`scores` (N, c) with the entries of targets in this chunk replaced, in place: by `values` (N,), or excluded.

        Nothing is read back from the device.
        """
        stride = chunk.columns.step or 1
        offset = self.position - chunk.columns.start
        is_here = (self.position >= chunk.columns.start) & (self.position < chunk.columns.stop) & (offset % stride == 0)
        index = torch.where(is_here, offset // stride, 0)[:, None]
        given = scores.gather(1, index)
        new = torch.full_like(given, EXCLUDED) if values is None else values[:, None].to(given.dtype)
        return scores.scatter_(1, index, torch.where(is_here[:, None], new, given))

    def sweep(self, is_student: bool) -> Callable[[int], Iterator[tuple[Tensor, Tensor]]]:
        """What `class_selection` asks for: called with a stride, the classes and scores of every chunk.

        The first full sweep of a network also sums the exponentials at temperature 1.
        """

        def chunks(stride: int) -> Iterator[tuple[Tensor, Tensor]]:
            is_new = stride == 1 and (is_student, 1.0) not in self._sums
            running = RunningSum.empty(len(self), self._like) if is_new else None
            for chunk in self.chunks(stride):
                scores = self.of(is_student, chunk)
                if running is not None:
                    chunk_kernels(scores).add_to_sum(scores, running, 1.0)
                yield chunk.classes, scores
            if running is not None:
                self._sums[is_student, 1.0] = running

        return chunks

    def log_others(self, is_student: bool, inverse_temperature: float = 1.0) -> Tensor:
        """log Σ exp(score · inverse_temperature) over all ranks' classes in play but the target: float64 (N,)."""
        return self.shard.log_sum_exp(self._sum(is_student, inverse_temperature).log())

    def best_others(self) -> Tensor:
        """The student's best score of each image, the target apart, of all ranks: (N,)."""
        return self.shard.max(self._sum(True, 1.0).best.clone())

    def _sum(self, is_student: bool, inverse_temperature: float) -> RunningSum:
        key = is_student, inverse_temperature
        if key not in self._sums:
            self._sums[key] = self._summed(is_student, inverse_temperature)
        return self._sums[key]

    def _summed(self, is_student: bool, inverse_temperature: float) -> RunningSum:
        running = RunningSum.empty(len(self), self._like)
        for chunk in self.chunks():
            scores = self.of(is_student, chunk)
            chunk_kernels(scores).add_to_sum(scores, running, inverse_temperature)
        return running

    def masses(self, is_student: bool, log_normaliser: Tensor, inverse_temperature: float) -> Tensor:
        """Σ_n exp(score · inverse_temperature - log_normaliser_n) of each class in play here: float64 (M,).

        Args:
            log_normaliser: float64 (N,). The targets' own share is not in the sum.
        """
        masses = torch.empty(self.num_columns, dtype=torch.float64, device=self.labels.device)
        for chunk in self.chunks():
            scores = self.of(is_student, chunk)
            chunk_kernels(scores).mass_of_classes(scores, log_normaliser, inverse_temperature, masses[chunk.columns])
        return masses

    def group_sums(self, primary: Primary, inverse_temperature: float) -> GroupSums:
        """The sums over both groups of this rank's classes in play, the targets apart."""
        sums = GroupSums.empty(len(self), self._like)
        for chunk in self.chunks():
            student, teacher = self.of(True, chunk), self.of(False, chunk)
            chunk_kernels(student).add_to_groups(student, teacher, primary, chunk.classes, inverse_temperature, sums)
        return sums

    def of_targets(self, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """What `gather` finds for the images' targets, on every rank: (N,), NaN for a label that no rank has in play.

        Args:
            gather: takes int64 (N, 1), columns among this rank's classes in play, and gives (N, 1); what it gives for
                targets of other ranks is not used.
        """
        is_own = self.position >= 0
        own = torch.zeros(len(self), dtype=self.dtype, device=self.labels.device)
        if self.num_columns:
            given = gather(self.position.clamp_min(0)[:, None]).squeeze(1).to(self.dtype)
            own = given.masked_fill(~is_own, 0.0)
        found = self.shard.sum(torch.stack([own, is_own.to(self.dtype)]))
        return torch.where(found[1] == 1, found[0], torch.nan)

    def gradients(
        self, primary: Primary | None, inverse_temperature: float, gradient: Gradient
    ) -> Iterator[tuple[Chunk, Tensor, Tensor]]:
        """Each chunk with the student's scores (N, c), and the derivative by them, which is 0 at the targets."""
        for chunk in self.chunks():
            student = self.of(True, chunk)
            teacher = self.of(False, chunk) if primary is not None else None
            out = torch.empty_like(student)
            chunk_kernels(student).write_gradient(
                student, teacher, primary, chunk.classes, inverse_temperature, gradient, out
            )
            yield chunk, student, out
