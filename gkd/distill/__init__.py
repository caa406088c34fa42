"""Distillation losses: student and teacher tensors -> Losses. This package needs only torch.

N images, C classes, D embedding dimension. Each table maps a YAML name to its class.
"""

from gkd.distill.dkd import DecoupledKD
from gkd.distill.embedding import EmbeddingDistillation
from gkd.distill.gkd import GroupedKD
from gkd.distill.grouping import CumulativeMass, Grouping, TopK
from gkd.distill.kd import KnowledgeDistillation
from gkd.distill.loss import NEEDS, DistillLoss
from gkd.distill.rkd import RelationalKD

LOSSES: dict[str, type[DistillLoss]] = {
    "gkd": GroupedKD,
    "kd": KnowledgeDistillation,
    "dkd": DecoupledKD,
    "embedding": EmbeddingDistillation,
    "rkd": RelationalKD,
}
GROUPINGS: dict[str, type[TopK | CumulativeMass]] = {"top_k": TopK, "cumulative_mass": CumulativeMass}

__all__ = [
    "GROUPINGS",
    "LOSSES",
    "NEEDS",
    "CumulativeMass",
    "DecoupledKD",
    "DistillLoss",
    "EmbeddingDistillation",
    "GroupedKD",
    "Grouping",
    "KnowledgeDistillation",
    "RelationalKD",
    "TopK",
]
