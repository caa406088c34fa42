"""An exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gkd.core.errors import ConfigError
from gkd.train import batch_norm


class Ema:
    """Averages the floating-point parameters and buffers of `module` over the steps.

    average <- d average + (1 - d) weights, with d = min(`decay`, (1 + t) / (10 + t)) after step t, counted from 0, so
    that the first weights are soon forgotten. Source: the schedule of TensorFlow's ExponentialMovingAverage.

    The averages start as the weights that `module` has: make it once these are on their device and filled, and load a
    checkpoint into `tensors` afterwards.

    Args:
        module: the network; its tensors must stay the same objects, as optimisers and checkpoints need anyway.
        decay: d in the long run, from 0 to 1; 0.9999 averages over about the last 10,000 steps.

    Attributes:
        tensors: the averages by the names of `module`, on its device.

    Raises:
        ConfigError: a decay outside 0 to 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"the decay of the moving average must lie in 0 to 1, 1 excluded, got {decay}")
        self.module = module
        self.decay = decay
        self._live = _floating_point(module)
        self.tensors = {name: tensor.clone() for name, tensor in self._live.items()}
        self._is_applied = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after step number `step`, from 0. Nothing waits for the device."""
        assert not self._is_applied, "the module holds the averages now"
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._live.values()), 1.0 - decay)

    def statistics(self) -> dict[str, Tensor]:
        """The averages of the running statistics of batch norms, which differ from rank to rank as those do."""
        return {name: self.tensors[name] for name in batch_norm.statistics(self.module)}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the module, and the live weights back afterwards, bit for bit.

        Meanwhile `tensors` holds the live weights: no update and no checkpoint may be made.
        """
        assert not self._is_applied, "the module holds the averages already"
        self._require_same_tensors()
        self._is_applied = True
        self._swap()
        try:
            yield
        finally:
            self._swap()
            self._is_applied = False

    @torch.no_grad()
    def _swap(self) -> None:
        # One tensor after another, so that no second copy of the network is needed.
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)

    def _require_same_tensors(self) -> None:
        # A buffer that was moved or cast is a new tensor, and the averages would follow the old one.
        now = _floating_point(self.module)
        moved = [name for name, tensor in self._live.items() if now[name].data_ptr() != tensor.data_ptr()]
        assert not moved, f"the module was moved or cast after its Ema was made: {', '.join(moved[:3])}"


def _floating_point(module: nn.Module) -> dict[str, Tensor]:
    both = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach() for name, tensor in both.items() if tensor.is_floating_point()}
