"""What a backbone costs: parameters and multiply-accumulates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gkd.models.backbone import Backbone


def num_parameters(module: nn.Module) -> int:
    """The number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(backbone: Backbone) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image of the backbone's input size.

    Other layers and matrix products outside such modules (attention) are not counted. Nothing is computed: the network
    runs on shapes alone, and neither its weights nor its statistics change.
    """
    macs: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            per_output = module.in_channels // module.groups * math.prod(module.kernel_size)
            macs.append(output[0].numel() * per_output)
        elif isinstance(module, nn.Linear):
            macs.append(output[0].numel() * module.in_features)

    _run_on_meta(backbone, backbone.modules(), count)
    return sum(macs)


def count_activations(backbone: Backbone, recomputed: Sequence[nn.Module] = ()) -> int:
    """Numbers that the layers of the backbone put out for one image of its input size, all of them together.

    About what a training step keeps for its backward pass; what a layer keeps beside its output is not counted. Of the
    blocks `recomputed` it is their inputs, and all of the largest one, which is there while it is computed again.
    """
    block_of = {module: block for block in recomputed for module in block.modules()}
    sizes: Counter[nn.Module | None] = Counter()

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module in recomputed:
            sizes[None] += inputs[0][0].numel()
        if not any(module.children()):
            sizes[block_of.get(module)] += output[0].numel()

    _run_on_meta(backbone, backbone.modules(), count)
    kept = sizes.pop(None, 0)
    return kept + max(sizes.values(), default=0)


def _run_on_meta(
    backbone: Backbone, modules: Iterable[nn.Module], hook: Callable[[nn.Module, Any, Tensor], None]
) -> None:
    """Run two images through the backbone on shapes alone, calling `hook` with each of `modules` and its output."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        with torch.no_grad():
            functional_call(backbone, _on_meta(backbone), (_two_images(backbone),))
    finally:
        for handle in handles:
            handle.remove()


def _on_meta(module: nn.Module) -> dict[str, Tensor]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}


def _two_images(backbone: Backbone) -> Tensor:
    # BatchNorm over vectors refuses a single image in training mode.
    return torch.empty(2, 3, *backbone.input_size, device="meta")
