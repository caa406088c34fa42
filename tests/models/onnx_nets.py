"""Small ONNX networks, right and wrong, written node by node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 4
OPSET = 17


def weights(embedding_dim: int) -> dict[str, npt.NDArray[np.float32]]:
    """The stored tensors of `face_net`; the convolution is a plain one of 4 x 4 patches."""
    generator = np.random.default_rng(3)
    shapes = {"kernel": (CHANNELS, 3, 4, 4), "bias": (CHANNELS,), "matrix": (CHANNELS * 4, embedding_dim)}
    return {name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def reference(images: npt.NDArray[np.float32], embedding_dim: int = 8) -> npt.NDArray[np.float64]:
    """What `face_net` computes, in float64: patches, bias, positive part, mean over quadrants, matrix."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in weights(embedding_dim).items()}
    rows = []
    for image in images.astype(np.float64):
        height, width = image.shape[1] // 4, image.shape[2] // 4
        maps = np.empty((CHANNELS, height, width))
        for row in range(height):
            for column in range(width):
                patch = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                maps[:, row, column] = (tensors["kernel"] * patch).sum(axis=(1, 2, 3)) + tensors["bias"]
        maps = np.maximum(maps, 0)
        halves = maps.reshape(CHANNELS, 2, height // 2, 2, width // 2).mean(axis=(2, 4))
        rows.append(halves.reshape(-1) @ tensors["matrix"])
    return np.stack(rows)


def face_net(
    path: Path,
    *,
    batch: int | str = "N",
    side: int | str = 32,
    embedding_dim: int = 8,
    target: Sequence[int] | None = None,
    pre: Sequence[Any] = (),
    source: str = "images",
    dtype: int = TensorProto.FLOAT,
    output_shape: Sequence[int | str] | None = None,
    stored: Sequence[Any] = (),
) -> Path:
    """Write a network from images (batch, 3, side, side) to embeddings.

    Args:
        target: a constant Reshape target that flattens; None takes Flatten.
        pre: nodes before the network; `source` is the value it then reads.
        output_shape: what the graph says of its output; the truth otherwise.
        stored: further initializers.
    """
    tensors = [numpy_helper.from_array(tensor, name) for name, tensor in weights(embedding_dim).items()]
    shape = numpy_helper.from_array(np.array([1, CHANNELS, 1, 1], dtype=np.int64))
    # A stored value reshaped to (1, C, 1, 1): this 1 is no batch.
    nodes = [
        *pre,
        helper.make_node("Constant", [], ["bias_shape"], value=shape),
        helper.make_node("Reshape", ["bias", "bias_shape"], ["bias4"]),
        helper.make_node("Conv", [source, "kernel"], ["maps"], strides=[4, 4]),
        helper.make_node("Add", ["maps", "bias4"], ["shifted"]),
        helper.make_node("Relu", ["shifted"], ["positive"]),
        helper.make_node("AveragePool", ["positive"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    if target is None:
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    else:
        tensors.append(numpy_helper.from_array(np.array(target, dtype=np.int64), "target"))
        nodes.append(helper.make_node("Reshape", ["pooled", "target"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "matrix"], ["embeddings"]))
    inputs = [helper.make_tensor_value_info("images", dtype, [batch, 3, side, side])]
    output = helper.make_tensor_value_info("embeddings", dtype, output_shape or [batch, embedding_dim])
    graph = helper.make_graph(nodes, "net", inputs, [output], [*tensors, *stored])
    if isinstance(batch, int):
        graph.value_info.append(helper.make_tensor_value_info("flat", dtype, [batch, CHANNELS * 4]))
    return save(path, graph)


def save(path: Path, graph: Any, domains: Sequence[str] = (), functions: Sequence[Any] = ()) -> Path:
    """Write a graph, with further operator domains and local functions."""
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def plain_graph(inputs: dict[str, tuple[int, list[Any]]], outputs: dict[str, tuple[int, list[Any]]]) -> Any:
    """A graph of those inputs and outputs, type and shape, whose only node copies the first input."""
    node = helper.make_node("Identity", [next(iter(inputs))], [next(iter(outputs))])
    values = [[helper.make_tensor_value_info(name, *it) for name, it in part.items()] for part in (inputs, outputs)]
    return helper.make_graph([node], "plain", *values)


def load(path: Path) -> Any:
    """The model in a file, to be changed."""
    return onnx.load_model_from_string(path.read_bytes())
