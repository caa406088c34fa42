"""Convolution with a faster way back on a CPU in bf16."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """torch's convolution: the same names and weights.

    Where it trains on a CPU under autocast to bf16, one in groups with a stride computes in fp32 and rounds its result:
    oneDNN's way back in bf16 takes many times as long there as the one in fp32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to maps."""
        is_strided = self.groups > 1 and max(self.stride) > 1
        if not (is_strided and input.device.type == "cpu" and torch.is_grad_enabled() and _casts_to_bf16()):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).bfloat16()


def _casts_to_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
