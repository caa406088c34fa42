"""What a network in an ONNX file costs: parameters and multiply-accumulates, from the graph alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.core.errors import CheckpointError
from gkd.models.onnx_file import MAX_BYTES, ImageGraph, read_onnx

_DEFAULT_SIZE = (112, 112)
_MAX_RANK = 16
# Inputs of these operators, by position, that hold settings or statistics and no weights.
_NO_WEIGHTS: Mapping[str, range] = {
    "BatchNormalization": range(3, 5),
    "Resize": range(1, 4),
    "Upsample": range(1, 2),
}
# Operators that multiply and accumulate, but are not counted here: a network with one has no known figure.
_UNCOUNTED = {"Attention", "ConvTranspose", "DeformConv", "Einsum", "GRU", "LSTM", "RNN"}
_QUANTISED = {
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class OnnxCost:
    """Weights of a network, and multiply-accumulates for one image; None where the graph does not show them."""

    num_parameters: int | None
    macs: int | None


def count_onnx(path: str | Path, *, input_size: tuple[int, int] | None = None, sha256: str | None = None) -> OnnxCost:
    """Count the weights of an ONNX network and the multiply-accumulates of its Conv, Gemm and MatMul nodes.

    Parameters are the elements of the stored float tensors (initializers and Constant nodes, each once) that a node
    uses as more than a setting: single numbers (bounds of Clip and the like), the statistics of BatchNormalization and
    scales of Resize are left out, as are tensors that no node reads. A network in evaluation mode is mostly written
    with each BatchNorm folded into the convolution before it, which then has C biases where the BatchNorm had 2 C
    parameters: such a file has fewer parameters than the module that it comes from, and as many multiply-accumulates.

    Matrix products of attention count here, but not in `count_macs`.

    Nothing is computed: shapes are inferred through the graph, without its weights. A batch fixed in the file is
    divided out. `macs` is None where a shape cannot be inferred or another operator multiplies (ConvTranspose, LSTM,
    onnxruntime's own ones); both are None for networks of integers and those with local functions,
    subgraphs or sparse tensors.

    Args:
        path: the file; it may come from anyone.
        input_size: (H, W) in pixels, where the file leaves them open; None takes 112 x 112.
        sha256: what the file must have (hex); None takes any file.

    Raises:
        CheckpointError: no file that `read_onnx` takes, another file, or a tensor in it is larger than any file.
    """
    import onnx

    content, described = read_onnx(Path(path))
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"{path}: is another file than the one with the SHA-256 {sha256}; put that back")
    model = onnx.load_model_from_string(content)
    stored = _stored_shapes(Path(path), model.graph)
    if not _is_plain(model):
        return OnnxCost(None, None)
    num_parameters = sum(math.prod(stored[name]) for name in _weights(model.graph, stored))
    height, width = input_size or _DEFAULT_SIZE
    size = (described.height or height, described.width or width)
    return OnnxCost(num_parameters, _count_macs(model, described, size))


def _is_plain(model: Any) -> bool:
    """Whether the nodes of the main graph are all there is, and work on floats."""
    import onnx

    subgraphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return (
        not model.functions
        and not model.graph.sparse_initializer
        and not any(
            node.op_type in _QUANTISED or any(attribute.type in subgraphs for attribute in node.attribute)
            for node in model.graph.node
        )
    )


def _stored_shapes(path: Path, graph: Any) -> dict[str, Shape]:
    """The shapes of the float tensors that the graph stores, by name."""
    shapes: dict[str, Shape] = {}
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in (node for node in graph.node if node.op_type == "Constant"):
        for attribute in node.attribute:
            if attribute.name == "value":
                tensors.append((_first(node.output), attribute.t))
            elif attribute.name == "value_floats":
                shapes[_first(node.output)] = (len(attribute.floats),)
    floats = _floats()
    return shapes | {name: _checked_shape(path, tensor) for name, tensor in tensors if tensor.data_type in floats}


def _floats() -> set[int]:
    import onnx

    kinds = onnx.TensorProto
    return {kinds.FLOAT, kinds.FLOAT16, kinds.BFLOAT16, kinds.DOUBLE}


def _first(names: Sequence[str]) -> str:
    """The first name, or the empty one, which names nothing."""
    return names[0] if names else ""


def _checked_shape(path: Path, tensor: Any) -> Shape:
    shape = tuple(tensor.dims)
    if len(shape) > _MAX_RANK or min(shape, default=0) < 0 or math.prod(shape) > MAX_BYTES:
        raise CheckpointError(
            f"{path}: damaged: its tensor {tensor.name!r} claims the shape {list(shape[:_MAX_RANK])}; export or "
            "download it again"
        )
    return shape


def _weights(graph: Any, stored: Mapping[str, Shape]) -> set[str]:
    """The stored tensors that a node uses as weights. A tensor keeps its identity through Identity nodes."""
    origin = {name: name for name in stored}
    weights: set[str] = set()
    for node in graph.node:  # in an order in which values are made before they are used
        if node.op_type == "Identity" and _first(node.input) in origin:
            origin[_first(node.output)] = origin[_first(node.input)]
            continue
        settings = _NO_WEIGHTS.get(node.op_type, ())
        weights |= {origin[name] for place, name in enumerate(node.input) if place not in settings and name in origin}
    return {name for name in weights if stored[name]}


def _count_macs(model: Any, described: ImageGraph, size: tuple[int, int]) -> int | None:
    if any(node.op_type in _UNCOUNTED or node.domain == "com.microsoft" for node in model.graph.node):
        return None
    batch_size = described.batch_size or 1
    shapes = _inferred_shapes(model, described.input_name, (batch_size, 3, *size))
    total = 0
    for node in model.graph.node:
        macs = _node_macs(node, shapes)
        if macs is None:
            return None
        total += macs
    return total // batch_size


def _node_macs(node: Any, shapes: Mapping[str, Shape]) -> int | None:
    """What a node multiplies and accumulates; None where a shape is not known."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return 0
    given, output = [shapes.get(name) for name in node.input[:2]], shapes.get(_first(node.output))
    if len(given) < 2 or not given[0] or not given[1] or output is None:
        return None
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(given[1][1:])
    is_transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(output) * given[0][0 if node.op_type == "Gemm" and is_transposed else -1]


def _inferred_shapes(model: Any, input_name: str, input_shape: Shape) -> dict[str, Shape]:
    """The shapes of all values that can be inferred when images have `input_shape`, by name."""
    import onnx

    bare = _without_weights(model, input_name, input_shape)
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    found = {value.name: _known_shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return constants | {name: shape for name, shape in found.items() if shape is not None}


def _without_weights(model: Any, input_name: str, input_shape: Shape) -> Any:
    """The same graph for images of `input_shape`; its float tensors become inputs, whose values play no part."""
    import onnx

    floats = _floats()
    graph, tensors = model.graph, model.graph.initializer
    names = {tensor.name for tensor in tensors}
    kind = next(value.type.tensor_type.elem_type for value in graph.input if value.name == input_name)
    inputs = [
        onnx.helper.make_tensor_value_info(input_name, kind, input_shape),
        *(
            onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
            for item in tensors
            if item.data_type in floats
        ),
        *(value for value in graph.input if value.name in names and value.type.tensor_type.elem_type not in floats),
    ]
    kept = [tensor for tensor in tensors if tensor.data_type not in floats]
    bare = onnx.helper.make_graph(graph.node, graph.name, inputs, _without_shapes(graph.output), kept)
    return onnx.helper.make_model(bare, opset_imports=model.opset_import, ir_version=model.ir_version)


def _without_shapes(values: Iterable[Any]) -> list[Any]:
    import onnx

    return [onnx.helper.make_tensor_value_info(item.name, item.type.tensor_type.elem_type, None) for item in values]


def _known_shape(value: Any) -> Shape | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    if len(dims) > _MAX_RANK or not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)
