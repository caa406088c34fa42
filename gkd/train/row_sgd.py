"""SGD that leaves alone the rows of a weight that no gradient reached, as Partial FC needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class RowSgd(torch.optim.SGD):
    """torch's SGD, in which a sparse gradient touches its own rows only.

    A parameter with a dense gradient is updated by torch's fused kernel, in one pass over memory. Of one with a sparse
    COO gradient the rows in it get torch's arithmetic for dense gradients, with g the gradient of a row, w its weights
    and b its momentum, at first 0:

        g <- g + weight_decay w;  b <- momentum b + (1 - dampening) g;  w <- w - lr (g + momentum b)   (Nesterov)

    and w <- w - lr b without Nesterov. Every other row keeps its weights and its momentum bit for bit, whereas a dense
    gradient of 0 would decay both. Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training
    of Face Recognition CNNs by Partial FC" (2022), whose sampled rows alone are updated; its public code
    gathers them into a small dense weight and swaps the optimiser's state, and we index instead.

    Attributes:
        gradient_factor: a number or a scalar on the device that multiplies every gradient in the next step, which
            spares clipping and a loss scale a pass of their own. With another value than 1 the gradients are used up.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, fused=True, **settings)
        self.gradient_factor: Tensor | float = 1.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; sparse ones are left coalesced in `grad`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own: list[nn.Parameter] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    own.append(parameter)
                    parameter.grad = parameter.grad.coalesce()
                    self._update_rows(parameter, group)
                elif not self._is_of_one_layout(parameter, group):
                    own.append(parameter)
                    self._update_in_place(parameter, parameter.grad, group)
        with _without_gradients(own), self._factor_for_torch():
            super().step()
        self.gradient_factor = 1.0
        return loss

    def _is_of_one_layout(self, parameter: nn.Parameter, group: dict[str, Any]) -> bool:
        """Whether all that belongs to `parameter` lies in memory alike: torch's kernel goes through it place by place.

        On a CPU it does not look, and would mix up the numbers. This also makes the momentum where there is none.
        """
        assert parameter.grad is not None
        together = [parameter.grad, self._momentum_of(parameter)] if group["momentum"] != 0 else [parameter.grad]
        is_dense = parameter.is_contiguous() or parameter.is_contiguous(memory_format=torch.channels_last)
        return is_dense and all(tensor.stride() == parameter.stride() for tensor in together)

    @property
    def _is_plain(self) -> bool:
        """Whether gradients are used as they are; that of a scalar on a device is not asked, which would wait."""
        return not isinstance(self.gradient_factor, Tensor) and self.gradient_factor == 1.0

    @contextmanager
    def _factor_for_torch(self) -> Iterator[None]:
        """Hand torch `gradient_factor` under the name and in the form in which its GradScaler would."""
        if self._is_plain:
            yield
            return
        device = next(p.device for group in self.param_groups for p in group["params"])
        factor = torch.as_tensor(self.gradient_factor, dtype=torch.float32, device=device)
        self.grad_scale = factor.reciprocal()
        try:
            yield
        finally:
            del self.grad_scale

    def _update_in_place(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        if not self._is_plain:
            gradient.mul_(self.gradient_factor)
        if group["maximize"]:
            gradient.neg_()
        if group["weight_decay"] != 0:
            gradient.add_(parameter, alpha=group["weight_decay"])
        direction = gradient
        if group["momentum"] != 0:
            momentum = self._momentum_of(parameter)
            momentum.mul_(group["momentum"]).add_(gradient, alpha=1 - group["dampening"])
            direction = gradient.add_(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        parameter.add_(direction, alpha=-float(group["lr"]))

    def _momentum_of(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum

    def _update_rows(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        assert parameter.grad.sparse_dim() == 1, "a sparse gradient must hold whole rows"
        rows, gradient = parameter.grad.indices()[0], parameter.grad.values()
        if not self._is_plain:
            gradient = gradient * self.gradient_factor
        if group["maximize"]:
            gradient = -gradient
        weight = parameter[rows]
        if group["weight_decay"] != 0:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        if group["momentum"] != 0:
            gradient = self._with_momentum(parameter, group, rows, gradient)
        parameter.index_copy_(0, rows, weight.add_(gradient, alpha=-float(group["lr"])))

    def _with_momentum(self, parameter: nn.Parameter, group: dict[str, Any], rows: Tensor, gradient: Tensor) -> Tensor:
        """The direction of the step; the momentum of `rows` is brought up to date."""
        kept = self._momentum_of(parameter)
        momentum = kept[rows].mul_(group["momentum"]).add_(gradient, alpha=1 - group["dampening"])
        kept.index_copy_(0, rows, momentum)
        return gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum


@contextmanager
def _without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Hide the gradients of `parameters`, so that an optimiser passes over them."""
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
