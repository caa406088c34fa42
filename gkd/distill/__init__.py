"""Distillation losses: student and teacher tensors -> Losses. This package needs only torch.

N images, C classes. Each table maps a YAML name to its class.
"""

from gkd.distill.gkd import GroupedKD
from gkd.distill.grouping import CumulativeMass, Grouping, TopK
from gkd.distill.loss import DistillLoss

LOSSES: dict[str, type[DistillLoss]] = {"gkd": GroupedKD}
GROUPINGS: dict[str, type[TopK | CumulativeMass]] = {"top_k": TopK, "cumulative_mass": CumulativeMass}

__all__ = ["GROUPINGS", "LOSSES", "CumulativeMass", "DistillLoss", "GroupedKD", "Grouping", "TopK"]
