"""A frozen network with its class weights: what a student learns from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gkd.core.class_shard import ClassShard
from gkd.core.types import Batch, Views
from gkd.heads import SoftmaxHead
from gkd.inference.embedding_store import EmbeddingStore
from gkd.models import InputSpec


class Teacher(nn.Module):
    """A backbone and its head, frozen for good.

    It stays in eval mode whatever `train()` is asked, has no gradient, and runs under `torch.no_grad`. Whoever holds
    one keeps it out of DDP and of checkpoints.

    Args:
        stored: the backbone's embeddings of the training images and their mirror images, to be read instead of running
            the backbone. They stand for every view of an image as long as mirroring is the only augmentation.

    Attributes:
        shows_logits: whether to compare with the class weights; not needed where no loss looks at logits.
    """

    head: SoftmaxHead

    def __init__(
        self,
        backbone: nn.Module,
        head: SoftmaxHead,
        input_spec: InputSpec,
        precision: Literal["fp32", "bf16"] = "fp32",
        stored: EmbeddingStore | None = None,
    ) -> None:
        super().__init__()
        self.precision = precision
        self.backbone = backbone
        self.head = head
        self.input_spec = input_spec
        self.stored = stored
        self.shows_logits = True
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode; `mode` is ignored."""
        super().train(False)
        return self

    def keep_classes(self, shard: ClassShard) -> None:
        """Keep the class weights of `shard` only, for losses that work rank by rank; no more logits are shown."""
        self.head.weight = nn.Parameter(self.head.weight[shard.start : shard.stop].clone(), requires_grad=False)
        self.shows_logits = False

    @torch.no_grad()
    def forward(self, batch: Batch) -> Views:
        """Embeddings (N, D) and cosines to the class weights (N, C), as `Views.logits` without scale or margin."""
        embeddings = self._embed(batch)
        return Views(embeddings, self.head.cosine(embeddings) if self.shows_logits else None)

    def _embed(self, batch: Batch) -> Tensor:
        if self.stored is not None:
            return self.stored.lookup(batch.sample_ids, batch.is_flipped).to(batch.images.device)
        with torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            embeddings: Tensor = self.backbone(self.input_spec.convert(batch.images))
        return embeddings
