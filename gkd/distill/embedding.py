"""Embedding distillation: the student's embedding of an image points where the teacher's does."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gkd.core.classes import compute_dtype
from gkd.core.errors import ConfigError
from gkd.core.types import Losses
from gkd.distill.loss import DistillLoss, check_embeddings, unit_vectors


class EmbeddingDistillation(DistillLoss):
    """Match the direction of the teacher's embedding, image by image.

    With unit vectors s = W·e^S / ||W·e^S|| and t = e^T / ||e^T||,
        l2:     distance = (1/N) Σ_n ||s_n - t_n||²
        cosine: distance = (1/N) Σ_n (1 - s_n·t_n), which is half of l2: one is the other with twice the weight.
    W is the identity where both embeddings are equally long. Where they are not, it is a linear map without bias from
    the student's length to the teacher's, trained along with the student and of no use after it.

    Source: the hint loss of Romero et al., "FitNets", ICLR 2015, arXiv 1412.6550, equation 3, on the embedding as the
    hint. Differences: both sides are normalised, as verification looks at angles only; the regressor W is linear, is
    trained together with the student, not before it, and is absent where lengths are equal. The cosine is computed as
    half of the squared distance, which does not cancel where s is near t. An all-zero embedding has no direction and
    gets no gradient.

    Args:
        distance: cosine or l2.

    Raises:
        ConfigError: another distance.
    """

    needs: frozenset[str] = frozenset({"embeddings"})

    def __init__(self, *, distance: Literal["cosine", "l2"] = "cosine") -> None:
        super().__init__()
        if distance not in ("cosine", "l2"):
            raise ConfigError(f"embedding.distance must be cosine or l2, got `{distance}`")
        self.distance = distance
        self.projection: nn.Linear | None = None

    def set_dims(self, student_dim: int, teacher_dim: int) -> None:
        """Make the projection W (teacher_dim, student_dim), drawn from torch's global generator, if they differ."""
        self.projection = None if student_dim == teacher_dim else nn.Linear(student_dim, teacher_dim, bias=False)

    def forward(self, student_embeddings: Tensor, teacher_embeddings: Tensor, labels: Tensor) -> Losses:
        """The loss of one batch, in fp32 (float64 where either input is), also under autocast.

        Args:
            student_embeddings: (N, D_S); gets a gradient, in its own type.
            teacher_embeddings: (N, D_T).
            labels: int64 (N,); the shape is checked, otherwise not used.

        Raises:
            ConfigError: shapes or types do not fit.
        """
        check_embeddings(student_embeddings, teacher_embeddings, labels)
        dtype = compute_dtype(student_embeddings, teacher_embeddings)
        with torch.autocast(student_embeddings.device.type, enabled=False):
            student = unit_vectors(self._project(student_embeddings, teacher_embeddings.shape[1]), dtype)
            teacher = unit_vectors(teacher_embeddings.detach(), dtype)
            distance = (student - teacher).square().sum(dim=1).mean()
        if self.distance == "cosine":
            distance = distance / 2
        return Losses(distance, {"distance": distance})

    def _project(self, embeddings: Tensor, teacher_dim: int) -> Tensor:
        student_dim = embeddings.shape[1]
        due = (student_dim, student_dim) if self.projection is None else self.projection.weight.shape[::-1]
        if due != (student_dim, teacher_dim):
            raise ConfigError(
                f"embedding: the student's embeddings have {student_dim} numbers and the teacher's {teacher_dim}, but "
                f"the loss was made for {'equal lengths' if self.projection is None else f'{due[0]} and {due[1]}'}; "
                f"call set_dims({student_dim}, {teacher_dim}) before training"
            )
        if self.projection is None:
            return embeddings
        projected: Tensor = self.projection(embeddings.to(self.projection.weight.dtype))
        return projected

    def extra_repr(self) -> str:
        return f"distance={self.distance}"
