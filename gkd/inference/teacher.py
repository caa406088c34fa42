"""A frozen network with its class weights: what a student learns from.

N images of a batch, D embedding dimension, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gkd.core.class_shard import ClassShard
from gkd.core.compiling import CompiledFunction
from gkd.core.errors import ConfigError
from gkd.core.types import Batch, Views
from gkd.heads import SoftmaxHead
from gkd.heads.softmax import unit_vectors
from gkd.inference.embedding_store import EmbeddingStore
from gkd.inference.side_stream import Later, SideStream
from gkd.models import InputSpec

# Images at once on a CPU: few at a time are up to three times as fast, since their maps stay in memory that is there.
_MOST_ON_CPU = 16


@dataclass(frozen=True)
class TeacherViews(Views):
    """What a teacher shows: `embeddings` have length 1 (0 where the network gave 0, NaN where it gave NaN), in fp32.

    as_given: the embeddings (N, D) before that, for heads, which divide by the length themselves: to do it twice is to
    round twice.
    """

    as_given: Tensor = field(kw_only=True)


class Teacher(nn.Module):
    """A backbone and its head, frozen for good.

    It stays in eval mode whatever `train()` is asked, has no gradient, and runs under `torch.inference_mode`. Whoever
    holds one keeps it out of DDP and of checkpoints.

    A step begins with `look_ahead`, which embeds the images of all micro-batches together; on CUDA on a stream of its
    own, beside what the student computes until it first needs them.

    Args:
        precision: of the backbone's forward pass. Class weights, their cosines and lengths are fp32.
        stored: the backbone's embeddings of the training images and their mirror images, to be read instead of running
            the backbone. They stand for every view of an image as long as mirroring is the only augmentation.
        batch_size: the most images that the backbone gets at once; None for all that there are, on a CPU 16. They come
            in pieces as equal as can be, so that there are at most two sizes.
        compile: run the backbone through `torch.compile`, which takes a minute or more at the first step, for each
            size. Where that fails, a warning says so and the backbone runs as it is.

    Attributes:
        shows_logits: whether to compare with the class weights; not needed where no loss looks at logits.

    Raises:
        ConfigError: a batch size below 1.
    """

    head: SoftmaxHead

    # What compiles the backbone.
    _compiler = "inductor"

    def __init__(
        self,
        backbone: nn.Module,
        head: SoftmaxHead,
        input_spec: InputSpec,
        precision: Literal["fp32", "bf16"] = "fp32",
        stored: EmbeddingStore | None = None,
        batch_size: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"the teacher's batch_size must be at least 1, or none for whole steps, got {batch_size}")
        self.precision = precision
        self.backbone = backbone
        self.head = head
        self.input_spec = input_spec
        self.stored = stored
        self.batch_size = batch_size
        self.compile_backbone = compile
        self.shows_logits = True
        self._compiled: CompiledFunction | None = None
        self._ahead: list[_Ahead] = []
        self._side_stream: SideStream | None = None
        self._seconds = 0.0
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

    def release_backbone(self) -> None:
        """Forget the network, which nothing runs any more where its embeddings are stored, and give its memory back."""
        assert self.stored is not None
        self.backbone = nn.Identity()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def look_ahead(self, batches: Sequence[Batch]) -> None:
        """Embed the images of `batches` together, for `forward` to find; what was embedded ahead before is forgotten.

        Their images must stay as they are until then; where they have changed all the same, they are embedded anew.
        """
        self._ahead = []
        with self._timed():
            later = self._embed_beside(batches)
        ends = [0]
        for batch in batches:
            ends.append(ends[-1] + len(batch))
            self._ahead.append(_Ahead(batch.images, batch.images._version, later, slice(ends[-2], ends[-1])))

    @torch.no_grad()
    def forward(self, batch: Batch) -> TeacherViews:
        """Unit embeddings (N, D) and cosines to the class weights (N, C), as `Views.logits` without scale or margin."""
        embeddings = self._find_or_embed(batch)
        logits = self.head.cosine(embeddings) if self.shows_logits else None
        return TeacherViews(unit_vectors(embeddings), logits, as_given=embeddings)

    def take_seconds(self) -> float | None:
        """Seconds spent on embeddings since last asked; None on CUDA, where knowing them takes waiting for the device.

        A lookup of stored embeddings is work of the processor and counts on CUDA too.
        """
        is_known = self.stored is not None or self.head.weight.device.type != "cuda"
        seconds, self._seconds = self._seconds, 0.0
        return seconds if is_known else None

    def _find_or_embed(self, batch: Batch) -> Tensor:
        with self._timed():
            for ahead in self._ahead:
                if ahead.is_of(batch.images):
                    return ahead.embeddings()
            return self._embed([batch])

    def _embed_beside(self, batches: Sequence[Batch]) -> Tensor | Later:
        device = batches[0].images.device
        if device.type != "cuda" or self.stored is not None:
            return self._embed(batches)
        if self._side_stream is None:
            self._side_stream = SideStream(device)
        return self._side_stream.run(lambda: self._embed(batches), [batch.images for batch in batches])

    @torch.no_grad()
    def _embed(self, batches: Sequence[Batch]) -> Tensor:
        """Embeddings (N, D) of all `batches`, in fp32, as the network or the store gives them."""
        if self.stored is not None:
            ids, flips = ([getattr(batch, name) for batch in batches] for name in ("sample_ids", "is_flipped"))
            found, device = self.stored.lookup(_joined(ids), _joined(flips)), batches[0].images.device
            # Out of memory that is not locked, the copy would wait for all that the device was given before.
            return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found
        images = _joined([batch.images for batch in batches])
        most = self.batch_size or (len(images) if images.device.type != "cpu" else _MOST_ON_CPU)
        num_pieces = -(-len(images) // most)
        is_bf16 = self.precision == "bf16"
        with torch.inference_mode(), torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=is_bf16):
            pieces = [self._run(self.input_spec.convert(piece)) for piece in images.tensor_split(num_pieces)]
        # Losses keep the embeddings for the way back, which a tensor made in inference mode cannot be; a copy can.
        return (pieces[0].clone() if num_pieces == 1 else torch.cat(pieces)).float()

    def _run(self, inputs: Tensor) -> Tensor:
        if not self.compile_backbone:
            return self._run_as_it_is(inputs)
        if self._compiled is None:
            self._compiled = CompiledFunction(
                self._run_as_it_is, "the teacher's backbone", "teacher.compile", self._compiler
            )
        return self._compiled(inputs)

    def _run_as_it_is(self, inputs: Tensor) -> Tensor:
        embeddings: Tensor = self.backbone(inputs)
        return embeddings

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started


@dataclass(frozen=True)
class _Ahead:
    """Embeddings found ahead for the images at one place in memory; holding those keeps others from coming there."""

    images: Tensor
    version: int
    found: Tensor | Later
    rows: slice

    def is_of(self, images: Tensor) -> bool:
        """Whether `images` are these, in whatever container, and nothing was written to them since."""
        return _place(images) == _place(self.images) and images._version == self.version

    def embeddings(self) -> Tensor:
        """The embeddings of the images, (N, D)."""
        return (self.found.get() if isinstance(self.found, Later) else self.found)[self.rows]


def _place(images: Tensor) -> tuple[Any, ...]:
    return images.device, images.data_ptr(), images.dtype, images.shape, images.stride()


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
