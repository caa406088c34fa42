"""Buffers of a network, which are above all the statistics of its batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Undo afterwards whatever is written to the buffers of `module`, as by a forward pass that shall not count."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
