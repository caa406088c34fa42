"""What a training step holds in memory on one rank, from shapes alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gkd.core import distributed
from gkd.core.class_scores import chunk_columns
from gkd.distill import LOSSES
from gkd.heads import HEADS
from gkd.heads.partial_fc import DEFAULT_RATE
from gkd.models import Backbone
from gkd.models.cost import count_activations, num_parameters
from gkd.schema import TrainRun
from gkd.train.recompute import blocks_of


def num_ranks() -> int:
    """The ranks of the run that is planned: those of torchrun, else one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step holds on one rank, from shapes alone."""

    backbone: int
    activations: int
    class_weights: int
    scores: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.backbone + self.activations + self.class_weights + self.scores


def estimate_memory(config: TrainRun, backbone: Backbone, num_classes: int, head: str | None = None) -> MemoryEstimate:
    """What a rank holds with the head named `head`, or the config's own.

    backbone: weights, gradient and momentum. activations: the output of every layer, or of those that are kept with
    `train.checkpoint_activations`. class_weights: those of the student with gradient and momentum, and of the teacher
    (taken to be as long). scores: six (n, C) matrices of a distilled step, three of another; of the heads that work in
    chunks, as many (N, c). An estimate: the allocator, workspaces and the teacher's passing activations come on top.
    """
    ranks, name = num_ranks(), head or config.head.name
    images = -(-config.train.batch_size // (config.train.micro_batches * ranks))
    bytes_per_activation = 4 if config.train.precision == "fp32" else 2
    recomputed = blocks_of(backbone) if config.train.checkpoint_activations else ()
    own_classes = num_classes if name == "softmax" else -(-num_classes // ranks)
    rows = 3.0 * own_classes
    if name == "partial_fc":
        rows = 2.0 * own_classes + min(own_classes, sample_rate(config) * own_classes + images * ranks)
    if any("logits" in LOSSES[term.loss.name].needs for term in config.distill):
        rows += own_classes
    scores = images * own_classes
    if name != "softmax":  # of all ranks' images, but few classes
        scores = images * ranks * min(own_classes, chunk_columns(images * ranks, distributed.device()))
    return MemoryEstimate(
        backbone=num_parameters(backbone) * 4 * 3,
        activations=images * count_activations(backbone, recomputed) * bytes_per_activation,
        class_weights=int(rows * backbone.embedding_dim * 4),
        scores=scores * 4 * (6 if config.teacher else 3),
    )


def sample_rate(config: TrainRun) -> float:
    """That of the config's head where it has one, else that of a partial_fc without settings."""
    rate: float = config.head.arguments().get("sample_rate", DEFAULT_RATE)
    return rate


def memory_lines(config: TrainRun, backbone: Backbone, num_classes: int) -> list[str]:
    """What this run needs, and what its head would need by any other name."""
    own = estimate_memory(config, backbone, num_classes)
    lines = [
        f"memory          about {format_bytes(own.total)} on each of {num_ranks()} rank(s): "
        f"backbone {format_bytes(own.backbone)}, activations {format_bytes(own.activations)}, "
        f"class weights {format_bytes(own.class_weights)}, scores {format_bytes(own.scores)}"
    ]
    for name in HEADS:
        one = estimate_memory(config, backbone, num_classes, name)
        rate = f" with sample_rate {sample_rate(config):g}" if name == "partial_fc" else ""
        chosen = "  <- this run" if name == config.head.name else ""
        lines.append(
            f"head {name:<10} {format_bytes(one.class_weights + one.scores)} a rank: class weights "
            f"{format_bytes(one.class_weights)}, scores {format_bytes(one.scores)}{rate}{chosen}"
        )
    return lines


def format_bytes(num_bytes: int) -> str:
    """In GiB, or in MiB below one."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
