"""Work of a CUDA device beside its main work. Nothing here makes the processor wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Later:
    """A tensor that another stream is still computing.

    Args:
        tensor: of that stream.
        done: the event that follows its computation there.
    """

    def __init__(self, tensor: Tensor, done: Any) -> None:
        self._tensor = tensor
        self._done = done

    def get(self) -> Tensor:
        """The tensor; what the current stream does from now on waits until it is there."""
        current = torch.cuda.current_stream(self._tensor.device)
        current.wait_event(self._done)
        # Its memory is the other stream's, which must not use it anew before the current one is through with it.
        self._tensor.record_stream(current)
        return self._tensor


class SideStream:
    """A stream beside the one that is current.

    Memory freed on one stream is not used anew by the other, so the work needs memory of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Later:
        """Let `function` compute on this stream, after all that the current stream was given so far.

        Args:
            inputs: the tensors of the current stream that it reads and that may be freed before it is done.
        """
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        for tensor in inputs:
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            result = function()
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return Later(result, done)
