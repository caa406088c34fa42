"""The optimiser, its parameter groups, and the gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gkd.core import distributed
from gkd.core.errors import ConfigError
from gkd.train.batch_norm import freeze_batch_norm as freeze_batch_norm
from gkd.train.row_sgd import RowSgd

MAX_NAMES_SHOWN = 6


@dataclass(frozen=True)
class GroupRule:
    """How the parameters whose names match a pattern are trained.

    Args:
        match: a pattern over the objective's parameter names, where `*` stands for any text, dots included, `?` for one
            character and `[03]` for one of several; such as `backbone.layers.0.*` or `head.*`.
        lr_factor: their learning rate as a multiple of the schedule's.
        frozen: they keep their values; batch norms among them keep their statistics too.

    Raises:
        ConfigError: an empty pattern, a factor that is not above 0, or one on what is frozen.
    """

    match: str
    lr_factor: float = 1.0
    frozen: bool = False

    def __post_init__(self) -> None:
        if not self.match:
            raise ConfigError("optim.groups: match is empty; give a pattern of parameter names, such as backbone.*")
        if not (math.isfinite(self.lr_factor) and self.lr_factor > 0):
            raise ConfigError(
                f"optim.groups: lr_factor of {self.match!r} must be above 0, got {self.lr_factor}; "
                "to keep parameters as they are, set frozen: true"
            )
        if self.frozen and self.lr_factor != 1.0:
            raise ConfigError(
                f"optim.groups: {self.match!r} is frozen, so its lr_factor {self.lr_factor} has no effect; remove one"
            )


def param_groups(
    objective: nn.Module,
    groups: Sequence[GroupRule] = (),
    *,
    weight_decay: float = 5e-4,
    decay_norm_and_bias: bool = False,
) -> list[dict[str, Any]]:
    """The trained parameters of `objective` as an optimiser's groups, one for each learning-rate factor and decay.

    Of several rules that match a name the first counts. What a rule freezes stops requiring gradients here, so this
    comes before DDP; `batch_norm.keep_frozen` belongs to it. Unless `decay_norm_and_bias`, weight decay spares every
    vector: the scales and shifts of norms, biases and the slopes of PReLU, which all have one dimension.

    Raises:
        ConfigError: a rule that no parameter is left for, or nothing left to train.
    """
    named = dict(objective.named_parameters())
    rules = _rule_of_each(list(named), groups)
    for name, parameter in named.items():
        if rules[name].frozen:
            parameter.requires_grad_(False)
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if not trained:
        raise ConfigError("optim.groups: every parameter is frozen, so there is nothing to train")
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for is_vector in (False, True):
        for name, parameter in trained.items():
            if (parameter.ndim <= 1) == is_vector:
                decay = 0.0 if is_vector and not decay_norm_and_bias else weight_decay
                members.setdefault((rules[name].lr_factor, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor}
        for (factor, decay), parameters in members.items()
    ]


def build_sgd(
    module: nn.Module,
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 5e-4,
    decay_norm_and_bias: bool = False,
    groups: Sequence[GroupRule] = (),
) -> RowSgd:
    """SGD over the trained parameters of `module`, grouped as `param_groups` says.

    A sparse gradient moves its own rows only; see `RowSgd`.

    Raises:
        ConfigError: as `param_groups`.
    """
    parameters = param_groups(module, groups, weight_decay=weight_decay, decay_norm_and_bias=decay_norm_and_bias)
    optimizer = RowSgd(parameters, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)
    set_lr(optimizer, lr)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate `lr` times its `lr_factor`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def clip_gradients(
    parameters: Iterable[Tensor],
    max_norm: float | None,
    sharded: Collection[Tensor] = (),
    loss_scale: float = 1.0,
    optimizer: RowSgd | None = None,
) -> Tensor:
    """The global L2 norm of the gradients, as a scalar on their device; scales them down to `max_norm` where given.

    norm² = Σ replicated² + Σ_ranks Σ sharded². It is the same on every rank. Nothing waits for the device, except where
    a sparse gradient has to be coalesced, and is then left so.

    Args:
        parameters: all that are trained; what has no gradient counts as 0.
        max_norm: None scales nothing.
        sharded: those whose gradients are this rank's classes alone, whether `parameters` holds them or not. Where
            there are any, this is collective: every rank must have the same ones.
        loss_scale: what the gradients are too large by; they are divided by it, and the norm is that of the result.
        optimizer: multiplies the gradients in its next step, which spares a pass over them here; they stay as they are.
    """
    trained = {id(each): each for each in (*parameters, *sharded) if each.grad is not None}
    gradients = {key: _values_of_gradient(each) for key, each in trained.items()}
    if sharded and distributed.world_size() > 1:
        norm = _norm_over_ranks(gradients, sharded)
    else:
        norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    norm = norm / loss_scale if loss_scale != 1.0 else norm
    factor: Tensor | float = 1.0 / loss_scale
    if max_norm is not None:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0) / loss_scale
        factor = float(factor) if factor.device.type == "cpu" else factor
    if optimizer is not None:
        optimizer.gradient_factor = factor
    elif gradients and (isinstance(factor, Tensor) or factor != 1.0):
        torch._foreach_mul_(list(gradients.values()), factor)
    return norm


def _values_of_gradient(parameter: Tensor) -> Tensor:
    """The numbers of a gradient, in its own memory; of a sparse one each row once."""
    assert parameter.grad is not None
    if parameter.grad.is_sparse:
        parameter.grad = parameter.grad.coalesce()
        return parameter.grad.values().detach()
    return parameter.grad


def _norm_over_ranks(gradients: dict[int, Tensor], sharded: Collection[Tensor]) -> Tensor:
    """The norm of `gradients`, given by the id of their parameters, and of what the other ranks have of `sharded`."""
    ids, like = {id(parameter) for parameter in sharded}, next(iter(sharded))
    own = _squared_norm([gradient for key, gradient in gradients.items() if key in ids], like)
    replicated = _squared_norm([gradient for key, gradient in gradients.items() if key not in ids], like)
    return (replicated + distributed.all_reduce_sum(own)).sqrt().to(like.dtype)


def _squared_norm(gradients: list[Tensor], like: Tensor) -> Tensor:
    # The squares of large fp32 norms would overflow in fp32.
    return torch.nn.utils.get_total_norm(gradients).to(like.device, torch.float64).square()


def _rule_of_each(names: Sequence[str], groups: Sequence[GroupRule]) -> dict[str, GroupRule]:
    """The first rule that matches each name; where none does, one that changes nothing."""
    found: dict[str, GroupRule] = {}
    for rule in groups:
        matched = [name for name in names if fnmatchcase(name, rule.match)]
        if not matched:
            raise ConfigError(f"optim.groups: {rule.match!r} matches no parameter; {_nearest(names, rule.match)}")
        taken = [name for name in matched if name not in found]
        if not taken:
            earlier = sorted({found[name].match for name in matched})
            raise ConfigError(
                f"optim.groups: all that {rule.match!r} matches is matched by {', '.join(map(repr, earlier))} before "
                "it, and the first match counts; put the narrower pattern first"
            )
        found |= dict.fromkeys(taken, rule)
    rest = GroupRule("*")
    return {name: found.get(name, rest) for name in names}


def _nearest(names: Sequence[str], pattern: str) -> str:
    """What was perhaps meant: similar names and prefixes, or what follows the part of the pattern that fits."""
    prefixes = {f"{name[:end]}.*" for name in names for end, letter in enumerate(name) if letter == "."}
    near = get_close_matches(pattern, [*sorted(prefixes), *names], n=3)
    if near:
        return f"near it are {', '.join(near)}"
    parts = pattern.split(".")
    fitting = [".".join(parts[:count]) for count in range(len(parts)) if f"{'.'.join(parts[:count])}.*" in prefixes]
    start = f"{fitting[-1]}." if fitting else ""
    inside = dict.fromkeys(name[len(start) :].partition(".")[0] for name in names if name.startswith(start))
    listed = ", ".join(f"{start}{part}" for part in list(inside)[:MAX_NAMES_SHOWN])
    return f"names begin with {listed}{' …' if len(inside) > MAX_NAMES_SHOWN else ''}"
