"""The full head: every class weight on every process."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.core.errors import ConfigError

# Shorter vectors have no direction: their cosines are 0 and no gradient reaches them.
SHORTEST_NORM = 1e-12
WEIGHT_DEVIATION = 0.01


def check_sizes(embedding_dim: int, num_classes: int) -> None:
    """Refuse sizes that leave nothing to compare.

    Raises:
        ConfigError: a size below 1.
    """
    if embedding_dim < 1 or num_classes < 1:
        raise ConfigError(
            f"a head needs embedding_dim and num_classes of at least 1, got {embedding_dim} and {num_classes}"
        )


class SoftmaxHead(nn.Module):
    """One weight vector per class; a class's score is its cosine with the embedding.

    The weights start as N(0, 0.01²), as in public ArcFace training code.

    Args:
        embedding_dim: D.
        num_classes: C.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        check_sizes(embedding_dim, num_classes)
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.normal_(self.weight, std=WEIGHT_DEVIATION)

    def forward(self, embeddings: Tensor) -> Tensor:
        """The same as `cosine`."""
        return self.cosine(embeddings)

    def cosine(self, embeddings: Tensor) -> Tensor:
        """Cosines of embeddings (N, D) with the class weights: (N, C) in fp32, in [-1, 1], also under autocast.

        Rounding can put a product just outside [-1, 1]; it is brought back without touching the gradient, which an
        ordinary clamp would set to 0 for exactly the best-fitting images.

        Raises:
            ConfigError: the embeddings are not (N, D).
        """
        embedding_dim = self.weight.shape[1]
        if embeddings.ndim != 2 or embeddings.shape[1] != embedding_dim:
            raise ConfigError(
                f"the head takes embeddings of shape (N, {embedding_dim}), got {tuple(embeddings.shape)}; the "
                "backbone's and the head's embedding_dim must be equal"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            cosine = F.linear(unit_vectors(embeddings.to(self.weight.dtype)), unit_vectors(self.weight))
            with torch.no_grad():
                cosine.clamp_(-1.0, 1.0)
        return cosine

    def extra_repr(self) -> str:
        return f"embedding_dim={self.weight.shape[1]}, num_classes={self.weight.shape[0]}"


def unit_vectors(vectors: Tensor) -> Tensor:
    """Rows (N, D) divided by their lengths; one without a direction becomes 0 and gets no gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    inverse = norm.clamp_min(SHORTEST_NORM).reciprocal()
    return vectors * torch.where(norm > SHORTEST_NORM, inverse, 0.0)
