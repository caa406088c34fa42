"""CosFace: an additive margin on the cosine."""

from __future__ import annotations

import torch
from torch import Tensor

from gkd.heads.margins.margin import Margin


class CosFace(Margin):
    """s·(cosθ_y - m) at the target, s·cosθ_j elsewhere.

    Source: Wang et al., "CosFace", CVPR 2018, equation 4.

    Args:
        margin: m, a difference of cosines, in [0, 2).
        scale: s, above 0.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(self, *, margin: float = 0.4, scale: float = 64.0) -> None:
        super().__init__(margin=margin, scale=scale, margin_limit=2.0)

    def shift(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """cosθ - m, and the derivative 1."""
        return target - self.margin, torch.ones_like(target)
