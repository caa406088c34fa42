"""ArcFace: an additive margin on the angle."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.heads.margins.margin import Margin

# The exact derivative grows without bound as θ nears 0 or π, where sin θ is 0.
_SMALLEST_SINE = 1e-4


class ArcFace(Margin):
    """s·cos(θ_y + m) at the target, s·cosθ_j elsewhere.

    Beyond θ = π - m, where cos(θ + m) would rise again, the target is s·(cosθ - m·sin m) with derivative s. The
    derivative of cos(θ + m) with respect to cosθ is cos m + cosθ·sin m / sinθ, with sinθ taken as at least 1e-4.

    Source: Deng et al., "ArcFace", CVPR 2019, equation 3. Public code applies the margin where no gradient is recorded:
    its value is exact but the target's derivative is s, as if there were no margin. `gradient="straight_through"`
    reproduces that, for recipes tuned with it.

    Args:
        margin: m in radians, in [0, π/2).
        scale: s, above 0.
        gradient: "exact" or "straight_through".

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(
        self, *, margin: float = 0.5, scale: float = 64.0, gradient: Literal["exact", "straight_through"] = "exact"
    ) -> None:
        super().__init__(margin=margin, scale=scale, margin_limit=math.pi / 2)
        if gradient not in ("exact", "straight_through"):
            raise ConfigError(f"margin.gradient must be `exact` or `straight_through`, got `{gradient}`")
        self.gradient = gradient

    def shift(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """cos(θ + m), or its stand-in beyond π - m, and the derivative."""
        cos_m, sin_m = math.cos(self.margin), math.sin(self.margin)
        sine = ((1 - target) * (1 + target)).clamp_min(0).sqrt()
        is_within = target >= -cos_m
        value = torch.where(is_within, target * cos_m - sine * sin_m, target - self.margin * sin_m)
        if self.gradient == "straight_through":
            return value, torch.ones_like(value)
        slope = cos_m + target * sin_m / sine.clamp_min(_SMALLEST_SINE)
        return value, torch.where(is_within, slope, 1.0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gradient={self.gradient}"
