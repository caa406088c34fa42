"""Our own backbones as ONNX graphs, written module by module, so that nothing but onnx is needed."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from gkd.models import Backbone, iresnet, mobilefacenet
from tests.models.onnx_nets import save

_LAST = "embed_in_full_precision"


def export(
    path: Path, backbone: Backbone, *, batch: int | str = "N", constants: bool = False, fold: bool = False
) -> Path:
    """Write a backbone that is made of convolutions, BatchNorm, PReLU, linear layers and sums, in evaluation mode.

    Args:
        constants: store tensors in Constant nodes instead of initializers.
        fold: fold each BatchNorm into the convolution before it, where there is one.
    """
    writer = _Writer(backbone.eval(), fold)
    with patch.object(iresnet, _LAST, _plain_end), patch.object(mobilefacenet, _LAST, _plain_end):
        graph = _Tracer().trace(backbone)
    for node in graph.nodes:
        writer.write(node)
    height, width = backbone.input_size
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])
    output = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [batch, backbone.embedding_dim])
    stored = [numpy_helper.from_array(values, name) for name, values in writer.tensors.items()]
    nodes = writer.nodes
    if constants:
        nodes = [*(helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in stored), *nodes]
        stored = []
    return save(path, helper.make_graph(nodes, "net", [image], [output], stored))


def _plain_end(features: torch.Tensor, linear: nn.Module, norm: nn.Module) -> Any:
    """The last layers without autocast, which cannot be traced."""
    return norm(linear(features))


class _Tracer(fx.Tracer):
    """Looks into no convolution and no PReLU, whatever they do inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.PReLU) or super().is_leaf_module(m, module_qualified_name)


class _Writer:
    def __init__(self, backbone: Backbone, fold: bool) -> None:
        self.modules = dict(backbone.named_modules())
        self.fold = fold
        self.nodes: list[Any] = []
        self.tensors: dict[str, np.ndarray] = {}

    def write(self, node: fx.Node) -> None:
        given = [str(item) for item in node.args if isinstance(item, fx.Node)]
        if node.op == "placeholder":
            assert node.name == "images"
        elif node.op == "output":
            self._node("Identity", given, "embeddings")
        elif node.op == "call_module":
            self._module(self.modules[str(node.target)], given, node.name)
        elif node.target in (operator.add, torch.add):
            self._node("Add", given, node.name)
        elif node.target in (torch.flatten, "flatten"):
            self._node("Flatten", given, node.name)
        else:
            raise AssertionError(f"no way to write {node.op} {node.target}")

    def _module(self, module: nn.Module, given: list[str], name: str) -> None:
        if isinstance(module, nn.Conv2d):
            pads = [*module.padding, *module.padding]
            settings = {"strides": module.stride, "pads": pads, "group": module.groups}
            self._node("Conv", [*given, *self._store(name, weight=module.weight, bias=module.bias)], name, **settings)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            self._batch_norm(module, given, name)
        elif isinstance(module, nn.PReLU):
            self._node("PRelu", [*given, *self._store(name, slope=module.weight[:, None, None])], name)
        elif isinstance(module, nn.Linear):
            stored = self._store(name, weight=module.weight, bias=module.bias)
            self._node("Gemm", [*given, *stored], name, transB=1)
        elif isinstance(module, nn.Flatten):
            self._node("Flatten", given, name)
        elif isinstance(module, nn.Identity | nn.Dropout):
            self._node("Identity", given, name)
        else:
            raise AssertionError(f"no way to write {type(module).__name__}")

    def _batch_norm(self, module: Any, given: list[str], name: str) -> None:
        conv = self.nodes[-1] if self.nodes else None
        if self.fold and conv is not None and conv.op_type == "Conv" and list(conv.output) == given:
            self._fold(module, conv)
            self._node("Identity", given, name)
            return
        ones, zeros = torch.ones_like(module.running_mean), torch.zeros_like(module.running_mean)
        stored = self._store(
            name,
            scale=ones if module.weight is None else module.weight,
            shift=zeros if module.bias is None else module.bias,
            mean=module.running_mean,
            variance=module.running_var,
        )
        self._node("BatchNormalization", [*given, *stored], name, epsilon=module.eps)

    def _fold(self, module: Any, conv: Any) -> None:
        scale = (module.weight / torch.sqrt(module.running_var + module.eps)).detach().numpy()
        kernel = conv.input[1]
        self.tensors[kernel] = self.tensors[kernel] * scale[:, None, None, None]
        shift = (module.bias.detach() - module.running_mean * torch.from_numpy(scale)).numpy()
        if len(conv.input) == 3:
            self.tensors[conv.input[2]] = self.tensors[conv.input[2]] * scale + shift
        else:
            self.tensors[f"{kernel}.folded"] = shift
            conv.input.append(f"{kernel}.folded")

    def _store(self, name: str, **tensors: torch.Tensor | None) -> list[str]:
        stored = {f"{name}.{key}": tensor for key, tensor in tensors.items() if tensor is not None}
        self.tensors |= {key: tensor.detach().numpy().copy() for key, tensor in stored.items()}
        return list(stored)

    def _node(self, kind: str, inputs: list[str], output: str, **settings: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], **settings))
