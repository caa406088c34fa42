"""Costs of ONNX networks against those of the modules that they come from, and counted by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gkd.core.errors import CheckpointError
from gkd.models import Backbone, OnnxBackbone, count_macs, create_backbone, num_parameters
from gkd.models.onnx_cost import OnnxCost, count_onnx
from tests.models import onnx_nets
from tests.models.onnx_export import export

UNKNOWN = OnnxCost(None, None)


def small(name: str) -> Backbone:
    """A small network of a family, its weights and statistics drawn anew so that no two tensors are equal."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"scale": 1, "blocks": (1, 2, 1, 1)} if name == "mobilefacenet" else {}
    if name == "iresnet":
        options = {"layers": (1, 2, 1, 1), "width_multiplier": 0.125}
    backbone = create_backbone(name, embedding_dim=16, input_size=(32, 48), **options)
    with torch.no_grad():
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0.5, 0.1).abs_() if "running_var" in name else tensor.normal_(0, 0.1)
    return backbone.eval()


@pytest.mark.parametrize("name", ["iresnet", "mobilefacenet"])
@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("batch", ["N", 1, 5])
def test_a_network_costs_what_its_module_does(tmp_path: Path, name: str, constants: bool, batch: int | str) -> None:
    backbone = small(name)
    path = export(tmp_path / "net.onnx", backbone, batch=batch, constants=constants)
    assert count_onnx(path) == OnnxCost(num_parameters(backbone), count_macs(backbone))


@pytest.mark.parametrize("name", ["iresnet", "mobilefacenet"])
def test_a_folded_batch_norm_leaves_a_bias_of_its_two_vectors(tmp_path: Path, name: str) -> None:
    backbone = small(name)
    whole = export(tmp_path / "whole.onnx", backbone)
    folded = export(tmp_path / "folded.onnx", backbone, fold=True)
    kinds = [node.op_type for node in onnx_nets.load(whole).graph.node]
    num_folded = kinds.count("BatchNormalization") - [node.op_type for node in onnx_nets.load(folded).graph.node].count(
        "BatchNormalization"
    )
    channels = sum(
        len(tensor.float_data) or tensor.dims[0]
        for tensor in onnx_nets.load(folded).graph.initializer
        if tensor.name.endswith(".folded")
    )
    assert num_folded > 5
    assert count_onnx(folded) == OnnxCost(num_parameters(backbone) - channels, count_macs(backbone))
    # The file holds the same network: only the bookkeeping differs.
    images = torch.randn(2, 3, *backbone.input_size)
    with torch.no_grad():
        expected = backbone(images)
    assert torch.allclose(
        OnnxBackbone(path=folded)(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )


def test_counted_by_hand(tmp_path: Path) -> None:
    """Convolution 3 -> 4 of 4 x 4 patches on 32 x 32, then 16 -> 8; the bias is added by a node of its own."""
    cost = count_onnx(onnx_nets.face_net(tmp_path / "net.onnx"))
    assert cost == OnnxCost(4 * 3 * 16 + 4 + 16 * 8, 8 * 8 * 4 * 3 * 16 + 16 * 8)


def test_a_reshape_to_a_fixed_batch_is_divided_out(tmp_path: Path) -> None:
    path = onnx_nets.face_net(tmp_path / "net.onnx", batch=6, target=(6, 16))
    assert count_onnx(path).macs == 8 * 8 * 4 * 3 * 16 + 16 * 8


def test_an_open_size_is_the_one_asked_for(tmp_path: Path) -> None:
    path = onnx_nets.face_net(tmp_path / "net.onnx", side="side")
    assert count_onnx(path, input_size=(32, 32)).macs == 8 * 8 * 4 * 3 * 16 + 16 * 8
    # The matrix fits 32 x 32 alone: with 112 x 112, its product cannot be inferred.
    assert count_onnx(path) == OnnxCost(4 * 3 * 16 + 4 + 16 * 8, None)
    fixed = onnx_nets.face_net(tmp_path / "fixed.onnx")
    assert count_onnx(fixed, input_size=(64, 64)) == count_onnx(fixed)


def network(path: Path, nodes: list[Any], tensors: dict[str, np.ndarray], **settings: Any) -> Path:
    """A network from images (N, 3, 16, 16) through `nodes` to `embeddings` (N, 768, or what they give)."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 16, 16])
    output = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", None])
    stored = [numpy_helper.from_array(values, name) for name, values in tensors.items()]
    return onnx_nets.save(path, helper.make_graph(nodes, "net", [image], [output], stored), **settings)


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, dtype=np.float32)


def test_settings_statistics_and_unused_tensors_are_no_weights(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["shift"], value_floats=[float(number) for number in range(16)]),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Identity", ["mean"], ["mean_again"]),
        helper.make_node("BatchNormalization", ["images", "scale", "bias", "mean_again", "mean"], ["normed"]),
        helper.make_node("Clip", ["normed", "low", "high"], ["clipped"]),
        helper.make_node("Mul", ["clipped", "half"], ["halved"]),
        helper.make_node("Add", ["halved", "shift"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "shift"], ["again"]),
        helper.make_node("Div", ["again", "number"], ["divided"]),
        helper.make_node("Resize", ["divided", "", "sizes"], ["resized"]),
        helper.make_node("Flatten", ["resized"], ["embeddings"]),
    ]
    tensors = {"sizes": floats(4), "scale": floats(3), "bias": floats(3), "mean": floats(3), "unused": floats(50)}
    tensors |= {"low": floats(), "high": floats(), "number": floats()}
    assert count_onnx(network(tmp_path / "net.onnx", nodes, tensors)) == OnnxCost(3 + 3 + 16, 0)


@pytest.mark.parametrize("transposed", [0, 1])
def test_matrix_products_of_every_form(tmp_path: Path, transposed: int) -> None:
    """The batch of 1 is contracted in Gemm's transposed form: (768, 1) x (1, 768) by its first side."""
    left = np.ones((768, 1) if transposed else (1, 768), dtype=np.float32)
    nodes = [
        helper.make_node("Gemm", ["left", "square"], ["row"], transA=transposed),
        helper.make_node("Reshape", ["images", "stack"], ["stacked"]),
        helper.make_node("MatMul", ["stacked", "stacked"], ["product"]),
        helper.make_node("Flatten", ["product"], ["flat"]),
        helper.make_node("Add", ["flat", "row"], ["embeddings"]),
    ]
    tensors = {"left": left, "square": floats(768, 768), "stack": np.array([-1, 3, 16, 16])}
    path = network(tmp_path / "net.onnx", nodes, tensors)
    assert count_onnx(path).macs == 768 * 768 + 3 * 16 * 16 * 16


def test_shapes_computed_by_the_graph_are_followed(tmp_path: Path) -> None:
    """What exporters write for x.view(x.size(0), -1)."""
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["images", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embeddings"]),
    ]
    tensors = {"first": np.array(0), "axes": np.array([0]), "rest": np.array([-1]), "matrix": floats(768, 7)}
    assert count_onnx(network(tmp_path / "net.onnx", nodes, tensors)) == OnnxCost(768 * 7, 768 * 7)


def test_half_and_stored_inputs_count_too(tmp_path: Path) -> None:
    path = onnx_nets.face_net(tmp_path / "net.onnx")
    expected = count_onnx(path)
    model = onnx_nets.load(path)
    for tensor in model.graph.initializer:  # as files of old versions list them
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    path.write_bytes(model.SerializeToString())
    assert count_onnx(path) == expected
    for index, tensor in enumerate(model.graph.initializer):
        halved = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        model.graph.initializer[index].CopyFrom(halved)
    del model.graph.input[1:]
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    path.write_bytes(model.SerializeToString())
    assert count_onnx(path) == expected


def test_an_operator_that_is_not_counted_leaves_the_figure_unknown(tmp_path: Path) -> None:
    for kind, domain in (("ConvTranspose", ""), ("FusedConv", "com.microsoft")):
        nodes = [
            helper.make_node(kind, ["images", "kernel"], ["maps"], domain=domain),
            helper.make_node("Flatten", ["maps"], ["embeddings"]),
        ]
        domains = [domain] if domain else []
        path = network(tmp_path / "net.onnx", nodes, {"kernel": floats(3, 3, 1, 1)}, domains=domains)
        assert count_onnx(path) == OnnxCost(9, None)


def test_integers_functions_and_subgraphs_leave_both_unknown(tmp_path: Path) -> None:
    flatten = helper.make_node("Flatten", ["images"], ["embeddings"])
    integers = [
        helper.make_node("DequantizeLinear", ["packed", "one"], ["matrix"]),
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embeddings"]),
    ]
    tensors = {"packed": np.ones((768, 4), dtype=np.int8), "one": floats()}
    assert count_onnx(network(tmp_path / "net.onnx", integers, tensors)) == UNKNOWN
    body = helper.make_graph([flatten], "branch", [], [helper.make_tensor_value_info("embeddings", 1, None)])
    branch = helper.make_node("If", ["yes"], ["embeddings"], then_branch=body, else_branch=body)
    assert count_onnx(network(tmp_path / "net.onnx", [branch], {"yes": np.array(True)})) == UNKNOWN
    opsets = [helper.make_opsetid("", onnx_nets.OPSET)]
    function = helper.make_function("own", "flat", ["images"], ["embeddings"], [flatten], opsets)
    call = helper.make_node("flat", ["images"], ["embeddings"], domain="own")
    path = network(tmp_path / "net.onnx", [call], {}, domains=["own"], functions=[function])
    assert count_onnx(path) == UNKNOWN


def test_shapes_that_contradict_each_other_are_unknown(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["embeddings"]),
    ]
    assert count_onnx(network(tmp_path / "net.onnx", nodes, {"matrix": floats(767, 4)})) == OnnxCost(4 * 767, None)
    nodes[1] = helper.make_node("MatMul", ["flat"], ["embeddings"])
    assert count_onnx(network(tmp_path / "net.onnx", nodes, {})) == OnnxCost(0, None)
    nodes[1] = helper.make_node("Conv", ["nothing", "matrix"], ["embeddings"])
    assert count_onnx(network(tmp_path / "net.onnx", nodes, {"matrix": floats(4, 4)})) == OnnxCost(16, None)


def test_nodes_without_inputs_or_outputs_do_no_harm(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], [], value=numpy_helper.from_array(floats(3), "x")),
        helper.make_node("Identity", [], []),
        helper.make_node("Flatten", ["images"], ["embeddings"]),
    ]
    path = network(tmp_path / "net.onnx", nodes, {})
    assert count_onnx(path).num_parameters == 0
    nodes.insert(0, helper.make_node("Conv", ["images", "images"], []))
    assert count_onnx(network(path, nodes, {})).macs is None


@pytest.mark.parametrize("dims", [[2**40, 2**40], [-1, 4], [1] * 17])
def test_a_tensor_larger_than_any_file_is_refused(tmp_path: Path, dims: list[int]) -> None:
    path = onnx_nets.face_net(tmp_path / "net.onnx")
    model = onnx_nets.load(path)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"net\.onnx: damaged: its tensor 'kernel' claims the shape \["):
        count_onnx(path)


def test_unsafe_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = onnx_nets.face_net(tmp_path / "net.onnx")
    model = onnx_nets.load(path)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    (tmp_path / "outside.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="lies in another file"):
        count_onnx(tmp_path / "outside.onnx")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="truncated"):
        count_onnx(path)
    with pytest.raises(CheckpointError, match="no such file"):
        count_onnx(tmp_path / "missing.onnx")


@pytest.mark.real
def test_a_pretrained_network(real_data: Path) -> None:
    """The weights' own file, before BatchNorm was folded: 999,936 parameters, 9,856 channels with a BatchNorm each.

    Folding takes one of its two vectors; the one convolution with a bias (128) loses both.
    """
    cost = count_onnx(real_data / "models" / "mobilefacenet128.onnx")
    assert cost.num_parameters == 999_936 - 9_856 - 128
    state = torch.load(real_data / "models" / "mobilefacenet128.pt", map_location="cpu", weights_only=True)
    kernels = [tensor for tensor in state.values() if tensor.ndim == 4]
    assert cost.num_parameters == sum(math.prod(kernel.shape) + len(kernel) for kernel in kernels)
    assert cost.macs == 233_810_432
