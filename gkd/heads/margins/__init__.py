"""Margins: cosines (N, C) and labels (N,) -> logits (N, C), for N images and C classes.

The table maps a YAML name to its class.
"""

from gkd.heads.margins.arcface import ArcFace
from gkd.heads.margins.cosface import CosFace
from gkd.heads.margins.margin import Margin

MARGINS: dict[str, type[Margin]] = {"arcface": ArcFace, "cosface": CosFace}

__all__ = ["MARGINS", "ArcFace", "CosFace", "Margin"]
