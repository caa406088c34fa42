"""Read an ONNX file that may be hostile, damaged or no face network, and free its batch dimension.

Nothing outside the file is ever opened for it, and only operators that onnxruntime itself brings are let through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import CheckpointError, DataError
from gkd.core.files import GIB, read_bounded
from gkd.core.yaml_lines import printable
from gkd.models.backbone import MAX_SIDE, MIN_SIDE

MAX_BYTES = 2 * GIB - 1  # what protobuf can hold
MIN_EMBEDDING_DIM = 2
MAX_EMBEDDING_DIM = 16_384
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
_BATCH_NAME = "num_images"
_HINT = "an .onnx file of one network is needed"


@dataclass(frozen=True)
class ImageGraph:
    """What a graph says of itself; None stands for a dimension that it leaves open.

    The one input is `input_name` (batch_size, 3, height, width), the output `output_name` (batch, embedding_dim).
    """

    input_name: str
    batch_size: int | None
    height: int | None
    width: int | None
    output_name: str
    embedding_dim: int | None
    is_half: bool


def read_onnx(path: Path) -> tuple[bytes, ImageGraph]:
    """The content of a file that holds a network from images (N, 3, H, W) to embeddings (N, D).

    Raises:
        CheckpointError: missing, empty, too large, no ONNX file, truncated, with data in other files, with operators
            that are not onnxruntime's own, or a network of another kind.
    """
    content = _read(path)
    model = _parse(path, content)
    try:
        _refuse_external_data(path, model)
        _refuse_foreign_operators(path, model)
        return content, _describe(path, model)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: damaged: a name in it is no text; export or download it again") from error


def with_free_batch(content: bytes) -> bytes:
    """The same network with an open batch dimension, where its batch is fixed at 1.

    Opens the first dimension of the input and the outputs, and makes each Reshape of computed values whose constant
    target begins with 1 keep its input's first dimension. Whether that 1 was the batch is not known here: the caller
    compares the results.
    """
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    constants = _constants(graph)
    for value in [*(value for value in graph.input if value.name not in constants), *graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = _BATCH_NAME
    del graph.value_info[:]  # shapes of values in between, which are worked out anew
    for index, node in enumerate(graph.node):
        target = _fixed_target(node, constants)
        if target is not None and len(target) >= 2 and target[0] == 1:
            kept = np.array([0, *target[1:]], dtype=np.int64)  # 0 keeps the input's
            node.input[1] = f"free_batch_target_{index}"
            graph.initializer.append(onnx.numpy_helper.from_array(kept, node.input[1]))
    freed: bytes = model.SerializeToString()
    return freed


def _constants(graph: Any) -> dict[str, Any]:
    """The tensors that the graph stores, by name."""
    made = {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    return {tensor.name: tensor for tensor in graph.initializer} | made


def _fixed_target(node: Any, constants: dict[str, Any]) -> npt.NDArray[np.int64] | None:
    """The stored shape that a Reshape gives to a computed value; None for anything else."""
    import onnx

    if node.op_type != "Reshape" or len(node.input) != 2 or node.input[0] in constants:
        return None
    if node.input[1] not in constants or any(item.name == "allowzero" and item.i for item in node.attribute):
        return None
    target: npt.NDArray[np.int64] = np.atleast_1d(onnx.numpy_helper.to_array(constants[node.input[1]]))
    return target


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if path.is_file() and size > MAX_BYTES:
            raise CheckpointError(f"{path}: {size:,} bytes is more than the 2 GiB that an ONNX file can have")
        content = read_bounded(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (DataError, OSError, ValueError) as error:
        raise CheckpointError(f"{error}") from error
    if not content:
        raise CheckpointError(f"{path}: is empty; export or download it again")
    return content


def _parse(path: Path, content: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    kind = _other_kind(content[:256])
    if kind:
        raise CheckpointError(f"{path}: is {kind}, not an ONNX file; {_HINT}")
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: truncated, damaged or not an ONNX file; export or download it again") from error
    if not model.HasField("graph") or not model.graph.node or not model.opset_import:
        raise CheckpointError(
            f"{path}: truncated or not an ONNX file (it has no complete graph); export or download it again"
        )
    return model


def _other_kind(head: bytes) -> str | None:
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML page"
    if head[:4] == b"PK\x03\x04":
        return "a zip archive, such as torch.save writes"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "a text file"
    return None


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all that are in it, functions and subgraphs too."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Iterable) else (value,):
                yield from _messages(part)


def _refuse_external_data(path: Path, model: Any) -> None:
    import onnx

    for tensor in _messages(model):
        if isinstance(tensor, onnx.TensorProto) and (
            tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data
        ):
            raise CheckpointError(
                f"{path}: refused, since its tensor {tensor.name!r} lies in another file, which may be anywhere; "
                "save the network as one file (onnx.save_model(model, path, save_as_external_data=False))"
            )


def _refuse_foreign_operators(path: Path, model: Any) -> None:
    import onnx

    own = {(function.domain, function.name) for function in model.functions}
    for node in _messages(model):
        if not isinstance(node, onnx.NodeProto):
            continue
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
            raise CheckpointError(
                f"{path}: refused, since it uses the operator {node.op_type!r} of {node.domain!r}, which is not "
                "onnxruntime's own; export the network with standard operators"
            )


def _describe(path: Path, model: Any) -> ImageGraph:
    import onnx

    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    has = f"it has inputs {_texts(inputs)} and outputs {_texts(graph.output)}"
    dims = _dims(inputs[0]) if len(inputs) == 1 else None
    if dims is None or len(dims) != 4 or dims[1] != 3 or inputs[0].type.tensor_type.elem_type not in floats:
        raise CheckpointError(f"{path}: a face network takes one float input of images (N, 3, H, W), but {has}")
    if any(side is not None and not MIN_SIDE <= side <= MAX_SIDE for side in dims[2:]) or dims[0] == 0:
        raise CheckpointError(f"{path}: images must be {MIN_SIDE} to {MAX_SIDE} pixels high and wide, but {has}")
    outputs = [value for value in graph.output if _may_be_embedding(value, floats)]
    if len(outputs) != 1:
        raise CheckpointError(
            f"{path}: a face network gives one float output of embeddings (N, D), D from {MIN_EMBEDDING_DIM} to "
            f"{MAX_EMBEDDING_DIM:,}, but {has}"
        )
    output_dims = _dims(outputs[0])
    return ImageGraph(
        inputs[0].name,
        *(dims[0], dims[2], dims[3]),
        outputs[0].name,
        output_dims[1] if output_dims else None,
        inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16,
    )


def _may_be_embedding(value: Any, floats: tuple[int, ...]) -> bool:
    dims = _dims(value)
    if value.type.tensor_type.elem_type not in floats:
        return False
    if dims is None:
        return True
    return len(dims) == 2 and (dims[1] is None or MIN_EMBEDDING_DIM <= dims[1] <= MAX_EMBEDDING_DIM)


def _dims(value: Any) -> list[int | None] | None:
    """The dimensions, None for an open one; None where the graph does not even tell how many there are."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims]


def _texts(values: Iterable[Any]) -> str:
    texts = [_text(value) for value in values]
    more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
    return (", ".join(texts[:4]) + more) or "none"


def _text(value: Any) -> str:
    """Such as `data float (?, 3, 112, 112)`."""
    import onnx

    number = value.type.tensor_type.elem_type
    kind = next(
        (name.lower() for name, known in onnx.TensorProto.DataType.items() if known == number), f"type {number}"
    )
    dims = _dims(value)
    shape = (
        "of unknown shape" if dims is None else "(" + ", ".join("?" if dim is None else str(dim) for dim in dims) + ")"
    )
    # protobuf gives a name that is no text as bytes.
    return f"{printable(str(value.name), 40)} {kind} {shape}"
