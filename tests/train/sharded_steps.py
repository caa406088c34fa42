"""One step of a sharded head with Grouped KD, on any number of ranks, for `tests.train.test_fused_head`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gkd.core import class_scores, distributed
from gkd.core.distributed import end_process
from gkd.core.errors import DataError
from gkd.distill import CumulativeMass, GroupedKD, Grouping, TopK
from gkd.heads import CosFace, PartialFCHead, ShardedHead
from gkd.train.fused_head import TeacherClasses, fused_losses
from tests.reference import fused_head as reference

NUM_IMAGES, DIM, TEACHER_DIM = 8, 16, 32
CLASSES = (7, 1000, 10_007)
GROUPINGS: dict[str, Grouping] = {
    "target alone": TopK(k=1),
    "top 5": TopK(k=5),
    "top 5 of the teacher": TopK(k=5, rank_by="teacher"),
    "top 10,000": TopK(k=10_000),
    "batch": CumulativeMass(),
    "batch of the teacher": CumulativeMass(threshold=0.6, rank_by="teacher", temperature=2.0, k_step=4),
    "sample": CumulativeMass(scope="sample"),
    "sample of the teacher": CumulativeMass(threshold=0.5, rank_by="teacher", scope="sample", k_step=3),
}
DATA = ("random", "tied", "labels of the last rank")
RATE = 0.3


@dataclass(frozen=True)
class Case:
    """One step: so many classes, a grouping, a precision, a kind of data."""

    num_classes: int
    grouping: str
    precision: str
    data: str
    sample_rate: float = 1.0
    margins: tuple[bool, bool] = (True, True)

    @property
    def loss(self) -> GroupedKD:
        """With all three parts."""
        return GroupedKD(secondary_weight=0.5, grouping=GROUPINGS[self.grouping])

    def sides(self) -> tuple[reference.Side, reference.Side, Tensor]:
        """The student, the teacher and the labels (N,) of the global batch."""
        generator = torch.Generator().manual_seed(self.num_classes)
        sizes = [(NUM_IMAGES, DIM), (self.num_classes, DIM), (NUM_IMAGES, TEACHER_DIM), (self.num_classes, TEACHER_DIM)]
        given = [torch.randn(size, generator=generator) for size in sizes]
        if self.data == "tied":
            # Vectors of ±1 and length 4 or, padded with zeros, 4 again: cosines are multiples of 1/8, exact in bf16.
            given = [torch.cat([value[:, :16].sign(), value[:, 16:] * 0], dim=1) for value in given]
        labels = torch.randint(0, self.num_classes, (NUM_IMAGES,), generator=generator)
        if self.data == "labels of the last rank":
            labels = self.num_classes - 1 - labels % max(1, self.num_classes // 3)
        return reference.Side(*given[:2], 0.2, 24.0), reference.Side(*given[2:], 0.1, 20.0), labels


CASES = [
    *(
        Case(num_classes, grouping, precision, data)
        for num_classes, grouping, precision, data in itertools.product(CLASSES, GROUPINGS, ("fp32", "bf16"), DATA)
    ),
    *(Case(1000, "top 5", "fp32", "random", margins=both) for both in ((True, False), (False, True), (False, False))),
    *(Case(1000, grouping, "fp32", "random", RATE) for grouping in ("top 5", "batch", "sample", "top 10,000")),
]


def own_rows() -> slice:
    """Uneven shares, as the last batch of an epoch can have."""
    borders = {1: (0, 8), 2: (0, 3, 8), 3: (0, 2, 3, 8)}[distributed.world_size()]
    return slice(borders[distributed.rank()], borders[distributed.rank() + 1])


def fused(case: Case) -> dict[str, Tensor]:
    """What this rank finds: its losses, and gradients scaled as the trainer scales them."""
    student, teacher, labels = case.sides()
    rows = own_rows()
    head = _head(case)
    shard = head.shard
    with torch.no_grad():
        head.weight.copy_(student.weight[shard.start : shard.stop])
    embeddings = student.embeddings[rows].clone().requires_grad_()
    classes = TeacherClasses(
        teacher.embeddings[rows],
        teacher.weight[shard.start : shard.stop],
        CosFace(margin=teacher.margin, scale=teacher.scale),
        case.loss,
        is_student_margin=case.margins[0],
        is_teacher_margin=case.margins[1],
    )
    margin = CosFace(margin=student.margin, scale=student.scale)
    classification, distilled = fused_losses(head, margin, embeddings, labels[rows], 3, classes)
    assert distilled is not None
    share = len(embeddings) * distributed.world_size() / NUM_IMAGES
    torch.autograd.backward((classification.total + distilled.total) * share)
    assert embeddings.grad is not None
    assert head.weight.grad is not None
    found = {"classification": classification.total, "total": distilled.total, **distilled.parts, **distilled.stats}
    grads = {"embeddings": embeddings.grad / distributed.world_size(), "weight": head.weight.grad.to_dense()}
    in_play = head.in_play(labels, 3).classes
    if in_play is None:
        in_play = torch.arange(shard.start, shard.stop)
    return (
        {name: value.detach() * len(embeddings) / NUM_IMAGES for name, value in found.items()}
        | grads
        | {"in_play": in_play}
    )


def _head(case: Case) -> ShardedHead:
    if case.sample_rate == 1:
        return ShardedHead(DIM, case.num_classes, precision=case.precision)  # type: ignore[arg-type]
    head = PartialFCHead(DIM, case.num_classes, sample_rate=case.sample_rate, precision=case.precision)  # type: ignore[arg-type]
    head.seed = 11
    return head


def of_logits(case: Case) -> dict[str, Tensor]:
    """`GroupedKD` on this rank's columns of given logits: what it finds, and the gradient."""
    student, teacher, labels = case.sides()
    given = [reference.logits(side, labels, "fp32").float() for side in (student, teacher)]
    shard = ShardedHead(1, case.num_classes).shard
    own = given[0][:, shard.start : shard.stop].clone().requires_grad_()
    losses = case.loss(own, given[1][:, shard.start : shard.stop], labels, shard=shard)
    torch.autograd.backward(losses.total)
    assert own.grad is not None
    found = {"total": losses.total, **losses.parts, **losses.stats, "grad": own.grad}
    return {name: value.detach() for name, value in found.items()}


def results() -> list[dict[str, dict[str, Tensor]]]:
    """Every case on this rank, in small chunks so that there are several of them."""
    before, class_scores._CPU_CHUNK_ENTRIES = class_scores._CPU_CHUNK_ENTRIES, 8 * 128
    try:
        return [
            {"fused": fused(case)} | ({"logits": of_logits(case)} if case.precision == "fp32" else {}) for case in CASES
        ]
    finally:
        class_scores._CPU_CHUNK_ENTRIES = before


def refusal() -> str:
    """What this rank says where a label of the last rank alone lies outside the classes."""
    rows = own_rows()
    labels = torch.zeros(rows.stop - rows.start, dtype=torch.int64)
    if distributed.rank() == distributed.world_size() - 1:
        labels[0] = 1000
    try:
        fused_losses(ShardedHead(DIM, 1000), CosFace(), torch.ones(len(labels), DIM), labels, 0)
    except DataError as error:
        return str(error)
    return "nothing"


def one_rank(rank: int, num_ranks: int, folder: str) -> None:
    """Called in a process of its own."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store{num_ranks}", num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    torch.save(results(), f"{folder}/{num_ranks}_{rank}.pt")
    Path(f"{folder}/{num_ranks}_{rank}.txt").write_text(refusal())
    dist.destroy_process_group()
    end_process(0)
