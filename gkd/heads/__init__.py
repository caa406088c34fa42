"""Heads: embeddings (N, D) -> cosines (N, C), and the margins that turn cosines into logits.

N images, D embedding dimension, C classes. Each table maps a YAML name to its class.
"""

from gkd.heads.margins import MARGINS, ArcFace, CosFace, Margin
from gkd.heads.partial_fc import PartialFCHead
from gkd.heads.sharded import ShardedHead
from gkd.heads.softmax import SoftmaxHead

Head = SoftmaxHead | ShardedHead

HEADS: dict[str, type[Head]] = {"softmax": SoftmaxHead, "sharded": ShardedHead, "partial_fc": PartialFCHead}

__all__ = ["HEADS", "MARGINS", "ArcFace", "CosFace", "Head", "Margin", "PartialFCHead", "ShardedHead", "SoftmaxHead"]
