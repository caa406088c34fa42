"""Heads: embeddings (N, D) -> cosines (N, C), and the margins that turn cosines into logits.

N images, D embedding dimension, C classes. Each table maps a YAML name to its class.
"""

from gkd.heads.margins import MARGINS, ArcFace, CosFace, Margin
from gkd.heads.softmax import SoftmaxHead

HEADS: dict[str, type[SoftmaxHead]] = {"softmax": SoftmaxHead}

__all__ = ["HEADS", "MARGINS", "ArcFace", "CosFace", "Margin", "SoftmaxHead"]
