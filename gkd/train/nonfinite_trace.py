"""Where the first number that is not finite arises in one forward and backward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gkd.core.types import Batch, Losses
from gkd.train.precision import Precision, autocast


@dataclass
class FirstBad:
    """What a pass showed.

    `losses` are the parts and the total; `module` is the first module, in the order of computation, that gave out a
    number that is not finite; `gradients` are the parameters with such a gradient, in the order in which the backward
    pass reaches them.
    """

    losses: dict[str, float] = field(default_factory=dict)
    module: str | None = None
    gradients: list[str] = field(default_factory=list)
    is_bad: bool = False


def trace(objective: nn.Module, batch: Batch, *, precision: Precision = "fp32") -> FirstBad:
    """Run `batch` forward and backward through `objective` and watch every module and gradient.

    Args:
        precision: of the forward pass, as in training.
    """
    found = FirstBad()
    objective.zero_grad(set_to_none=True)
    with _watched(objective, found):
        with autocast(batch.images.device, precision):
            losses: Losses = objective(batch)
        if losses.total.requires_grad:
            torch.autograd.backward(losses.total)
    values = {**losses.parts, "total": losses.total}
    found.losses = {name: float(value.detach()) for name, value in values.items()}
    are_losses_finite = all(math.isfinite(value) for value in found.losses.values())
    found.is_bad = not are_losses_finite or bool(found.gradients)
    return found


@contextmanager
def _watched(objective: nn.Module, found: FirstBad) -> Iterator[None]:
    """Hooks on every module, those of a teacher too, and on every gradient, as long as the context lasts."""
    handles = [module.register_forward_hook(_note_output(name, found)) for name, module in _modules(objective)]
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            hook = parameter.register_post_accumulate_grad_hook
            handles.append(hook(_note_gradient(name, found)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _modules(objective: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield from ((name, module) for name, module in objective.named_modules() if name)
    teacher = objective.__dict__.get("teacher")  # objectives keep it out of their sub-modules
    if isinstance(teacher, nn.Module):
        yield from ((f"teacher.{name}" if name else "teacher", module) for name, module in teacher.named_modules())


def _note_output(name: str, found: FirstBad) -> Any:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if found.module is None and not _is_finite(output):
            came_in = "" if _is_finite(inputs) else ", whose input is not finite either"
            found.module = f"{name} ({type(module).__name__}){came_in}"

    return note


def _note_gradient(name: str, found: FirstBad) -> Any:
    def note(parameter: Tensor) -> None:
        if parameter.grad is not None and not _is_finite(parameter.grad):
            found.gradients.append(name)

    return note


def _is_finite(value: Any) -> bool:
    """Whether all floating-point tensors in `value`, a tensor or a nest of tuples, lists and dicts, are finite."""
    if isinstance(value, Tensor) and value.is_sparse:
        return _is_finite(value.coalesce().values())
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, tuple | list):
        return all(_is_finite(item) for item in value)
    return True
