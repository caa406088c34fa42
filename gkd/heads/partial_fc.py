"""Partial FC: each step compares the images with a random part of the classes.

Shapes: N images of all ranks, C classes, K classes on this rank, M of them in play.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.heads.sharded import ClassesInPlay, ShardedHead

DEFAULT_RATE = 0.1


class PartialFCHead(ShardedHead):
    """The sharded head over a random part of the classes, drawn anew in every step; the images' own are always in it.

    A class is drawn with probability `sample_rate`, from random numbers that depend on the run's seed, the step and the
    class alone, so that the number of ranks changes nothing. The gradient is sparse: weights, momentum and weight decay
    of classes that are not in play stay as they are, bit for bit. With a rate of 1 it is the sharded head.

    Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by
    Partial FC", CVPR 2022. Differences: classes are drawn each for itself, not a fixed number of them on each rank; and
    public code decays and moves, by their momentum, all rows in each step.

    Args:
        embedding_dim: D.
        num_classes: C.
        sample_rate: the probability of each class, in (0, 1].
        precision: of the inputs of matrix products; sums, scores and weights are fp32 in any case.

    Attributes:
        seed: of the run; set by whoever builds it.

    Raises:
        ConfigError: a size below 1, more ranks than classes, or a rate outside (0, 1].
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        sample_rate: float = DEFAULT_RATE,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        if not 0 < sample_rate <= 1:
            raise ConfigError(
                f"head.sample_rate must lie in (0, 1], got {sample_rate}; 0.1 compares with a tenth of the classes, "
                "1 with all of them"
            )
        super().__init__(embedding_dim, num_classes, precision=precision)
        self.sample_rate = float(sample_rate)
        self.seed = 0

    def in_play(self, labels: Tensor, step: int) -> ClassesInPlay:
        """The classes of the images `labels` (N,) of all ranks, and the others that are drawn in `step`."""
        if self.sample_rate == 1:
            return super().in_play(labels, step)
        shard, device = self.shard, self.weight.device
        # One number for every class of all ranks: 2 million of them take a hundredth of a second on a CPU.
        generator = torch.Generator(device).manual_seed(hash((self.seed, step)) & 0x7FFF_FFFF_FFFF_FFFF)
        drawn = torch.rand(shard.num_classes, generator=generator, device=device)[shard.start : shard.stop]
        own = (labels - shard.start).clamp(0, shard.size - 1)
        num_images = torch.zeros_like(drawn).index_add_(0, own, shard.holds(labels).to(drawn.dtype))
        rows = ((drawn < self.sample_rate) | (num_images > 0)).nonzero().squeeze(1)
        num_in_play = int(shard.sum(torch.tensor(len(rows))))
        return ClassesInPlay(rows + shard.start, rows, num_in_play)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sample_rate={self.sample_rate}"
