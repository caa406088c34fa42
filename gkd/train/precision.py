"""Mixed precision of the student: autocast, and the loss scale that fp16 needs."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from gkd.core.errors import CheckpointError

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_SCALE = 2.0**24


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a forward pass; in fp32 it changes nothing."""
    return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")


class LossScale:
    """The power of two that losses are multiplied by, so that small gradients do not vanish in fp16.

    It is halved by a step whose gradient overflows, which is left out, and doubled after `interval` steps in a row
    without one. Gradients are divided by it before they are clipped, exactly. Each rank keeps its own; they agree, for
    all see the same norm.

    Source: Micikevicius et al., "Mixed Precision Training" (ICLR 2018), section 3.2, dynamic loss scaling.

    Args:
        initial: the first scale.
        interval: steps without an overflow before the scale is doubled.
    """

    def __init__(self, initial: float = 2.0**16, interval: int = 2000) -> None:
        self.scale = initial
        self.interval = interval
        self.num_good = 0

    def update(self, is_overflow: bool) -> None:
        """Take note of a step."""
        self.num_good = 0 if is_overflow else self.num_good + 1
        if is_overflow:
            self.scale = max(1.0, self.scale / 2)
        elif self.num_good == self.interval:
            self.num_good, self.scale = 0, min(_LARGEST_SCALE, self.scale * 2)

    def state(self) -> dict[str, float]:
        """Plain values for a checkpoint."""
        return {"scale": self.scale, "num_good": self.num_good}

    def restore(self, state: Any) -> None:
        """Take what `state` gave.

        Raises:
            CheckpointError: it is not such a state.
        """
        scale, num_good = (state.get("scale"), state.get("num_good")) if isinstance(state, dict) else (None, None)
        is_scale = isinstance(scale, float) and 1 <= scale <= _LARGEST_SCALE and math.log2(scale).is_integer()
        if not is_scale or type(num_good) is not int or not 0 <= num_good < self.interval:
            raise CheckpointError(f"the checkpoint's loss scale is damaged: {state!r}")
        assert isinstance(scale, float)
        self.scale, self.num_good = scale, num_good
