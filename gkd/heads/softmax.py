"""The full head: every class weight on every process."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.core.errors import ConfigError

# Shorter vectors have no direction: their cosines are 0 and no gradient reaches them.
_SHORTEST_NORM = 1e-12


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
        if embedding_dim < 1 or num_classes < 1:
            raise ConfigError(
                f"a head needs embedding_dim and num_classes of at least 1, got {embedding_dim} and {num_classes}"
            )
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.normal_(self.weight, std=0.01)

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
            cosine = F.linear(_normalise(embeddings.to(self.weight.dtype)), _normalise(self.weight))
            with torch.no_grad():
                cosine.clamp_(-1.0, 1.0)
        return cosine

    def extra_repr(self) -> str:
        return f"embedding_dim={self.weight.shape[1]}, num_classes={self.weight.shape[0]}"


def _normalise(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    inverse = norm.clamp_min(_SHORTEST_NORM).reciprocal()
    return vectors * torch.where(norm > _SHORTEST_NORM, inverse, 0.0)
