"""Activation checkpointing: blocks of a network forget what they computed, and compute it again on the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gkd.core.buffers import buffers_kept
from gkd.core.errors import ConfigError


def recompute_blocks(network: nn.Module) -> int:
    """Let every block of `network` keep its input only; returns how many blocks there are.

    A block is what stands in a row of modules (`nn.Sequential`, `nn.ModuleList`) and holds convolutions. Values and
    gradients stay the same to the last bit; the statistics of batch norms are taken once. Names of parameters stay.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).

    Raises:
        ConfigError: a network without such blocks.
    """
    blocks = blocks_of(network)
    if not blocks:
        raise ConfigError(
            "train.checkpoint_activations: this backbone has no row of blocks to compute again; set it to false"
        )
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)
    return len(blocks)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks that `recompute_blocks` computes again."""
    return list(_blocks(network))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks, in order."""
    for child in module.children():
        if isinstance(module, nn.Sequential | nn.ModuleList) and _has_convolution(child) and not _is_row(child):
            yield child
        else:
            yield from _blocks(child)


def _is_row(module: nn.Module) -> bool:
    """Whether it is itself a row of modules that hold more than one convolution each."""
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return False
    return any(sum(isinstance(part, nn.Conv2d) for part in child.modules()) > 1 for child in module)


def _has_convolution(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


def _forward(block: nn.Module, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), buffers_kept(block)

    result: Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
    return result
