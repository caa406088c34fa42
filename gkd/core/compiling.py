"""A function of one tensor through `torch.compile`, and as it is where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Function = Callable[[Tensor], Tensor]


class CompiledFunction:
    """`function`, compiled at the first call, which takes a minute or more for each size of its input.

    Where that fails, one warning says so, and `function` itself goes on.

    Args:
        what: what is compiled, for the warning, such as `the teacher's backbone`.
        setting: the setting that asks for it.
        compiler: the backend of `torch.compile`.

    Attributes:
        is_compiled: False once it has failed.
    """

    def __init__(self, function: Function, what: str, setting: str, compiler: str | Callable[..., Any]) -> None:
        self.is_compiled = True
        self._function = function
        self._what = what
        self._setting = setting
        # One graph a size: pieces of a batch differ by one image at most.
        self._compiled: Function = torch.compile(function, dynamic=False, backend=compiler)

    def __call__(self, inputs: Tensor) -> Tensor:
        """What the function gives."""
        if not self.is_compiled:
            return self._function(inputs)
        try:
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
