"""A function of one tensor through `torch.compile`, and as it is where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gkd.core.buffers import buffers_kept

logger = logging.getLogger(__name__)

Function = Callable[[Tensor], Tensor]


class CompiledFunction:
    """`function`, compiled at the first call, which takes a minute or more for each size of its input.

    Where that fails, one warning says so, and `function` itself goes on. torch compiles the way back when it is first
    gone, where nobody could catch a failure. So the first input of each size is sent both ways through a network that
    is trained before it counts; gradients, buffers and random numbers are afterwards as they were.

    Args:
        what: what is compiled, for the warning, such as `the teacher's backbone`.
        setting: the setting that asks for it.
        compiler: the backend of `torch.compile`.
        trained: the network that `function` runs, where it is trained by it.

    Attributes:
        is_compiled: False once it has failed.
    """

    def __init__(
        self,
        function: Function,
        what: str,
        setting: str,
        compiler: str | Callable[..., Any],
        *,
        trained: nn.Module | None = None,
    ) -> None:
        self.is_compiled = True
        self._function = function
        self._what = what
        self._setting = setting
        self._trained = trained
        self._rehearsed: set[tuple[Any, ...]] = set()
        # One graph a size: pieces of a batch differ by one image at most.
        self._compiled: Function = torch.compile(function, dynamic=False, backend=compiler)

    def __call__(self, inputs: Tensor) -> Tensor:
        """What the function gives."""
        if not self.is_compiled:
            return self._function(inputs)
        try:
            if self._trained is not None and torch.is_grad_enabled():
                self._rehearse(inputs, self._trained)
            return self._compiled(inputs)
        except Exception as error:  # compilers share no base of what they raise; the function's own comes again below
            self.is_compiled = False
            logger.warning(
                "%s cannot be compiled (%s: %s); it runs as it is, which is slower. Set %s=false to be rid of this "
                "line",
                self._what,
                type(error).__name__,
                " ".join(str(error).split("\n")[:2]),  # the first line may only say that the second comes
                self._setting,
            )
        return self._function(inputs)

    def _rehearse(self, inputs: Tensor, network: nn.Module) -> None:
        """Go both ways once for inputs of this kind, without a trace."""
        kind = (inputs.shape, inputs.stride(), inputs.dtype, torch.is_autocast_enabled(inputs.device.type))
        if kind in self._rehearsed:
            return
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        devices = [inputs.device] if inputs.device.type == "cuda" else []
        with buffers_kept(network), torch.random.fork_rng(devices=devices):
            outputs = self._compiled(inputs)
            if outputs.requires_grad:
                # Not `backward`, of which gradients and the hooks of data-parallel training would take notice.
                torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)
        self._rehearsed.add(kind)
