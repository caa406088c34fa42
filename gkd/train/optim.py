"""The optimiser and the gradient clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def build_sgd(
    module: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 5e-4,
    decay_norm_and_bias: bool = False,
) -> torch.optim.SGD:
    """SGD over the trainable parameters of `module`.

    Unless `decay_norm_and_bias`, weight decay spares every vector: the scales and shifts of norms, biases and the
    slopes of PReLU, which all have one dimension.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in trainable if p.ndim > 1 or decay_norm_and_bias]
    spared = [p for p in trainable if p.ndim <= 1 and not decay_norm_and_bias]
    groups = [{"params": decayed, "weight_decay": weight_decay}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """The global L2 norm of the gradients, as a scalar on their device; scales them down to `max_norm` where given."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, factor)
    return norm


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch norm of `module` in eval mode; called after each `train()`, which would undo it."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()
