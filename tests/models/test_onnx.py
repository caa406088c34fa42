"""Networks from ONNX files: what they compute, what their file may say, and what is refused."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gkd.core.errors import CheckpointError, ConfigError
from gkd.models import InputSpec, OnnxBackbone, create_backbone, onnx_backbone, save_student
from tests.models.onnx_nets import face_net, load, plain_graph, reference, save

FLOAT = TensorProto.FLOAT


def draw_images(count: int, side: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(count).standard_normal((count, 3, side, side)).astype(np.float32))


def check_against_reference(backbone: OnnxBackbone, count: int = 5) -> None:
    images = draw_images(count)
    np.testing.assert_allclose(backbone(images).numpy(), reference(images.numpy()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "batch_size"),
    [
        ({}, None),
        ({"batch": 1}, None),
        ({"batch": 1, "target": [1, -1]}, None),
        ({"batch": 1, "target": [1, 16]}, None),
        ({"batch": 4}, 4),
        ({"batch": 4, "target": [4, -1]}, 4),
        ({"target": [1, -1]}, 1),  # an open batch that the network does not keep
        ({"output_shape": [1, 8]}, None),  # an output that is said to be fixed and is not
        ({"output_shape": ["N", "D"]}, None),
    ],
)
def test_embeddings_for_every_kind_of_batch(tmp_path: Path, options: dict[str, Any], batch_size: int | None) -> None:
    backbone = OnnxBackbone(path=face_net(tmp_path / "net.onnx", **options))
    assert (backbone.batch_size, backbone.embedding_dim, backbone.input_size) == (batch_size, 8, (32, 32))
    for count in (1, 4, 5, 9):
        check_against_reference(backbone, count)
    assert backbone(draw_images(2)[:0]).shape == (0, 8)


def test_a_batch_that_mixes_images_is_embedded_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pre = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["images", "mean"], ["mixed"]),
    ]
    backbone = OnnxBackbone(path=face_net(tmp_path / "net.onnx", batch=1, pre=pre, source="mixed"))
    assert backbone.batch_size == 1
    assert "embeds images one by one, since a batch of them gives other embeddings: by " in caplog.text
    images = draw_images(3)
    np.testing.assert_allclose(backbone(images).numpy(), reference(2 * images.numpy()), rtol=1e-4, atol=1e-5)


def test_it_is_frozen_and_remembers_its_file(tmp_path: Path) -> None:
    path = face_net(tmp_path / "net.onnx")
    backbone = create_backbone(f"onnx:{path}")
    assert isinstance(backbone, OnnxBackbone)
    assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list(backbone.parameters()) == []
    assert backbone.state_dict() == {}
    assert not backbone.train().training
    embeddings = backbone(draw_images(2).requires_grad_())
    assert not embeddings.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone(draw_images(2).bfloat16()).dtype == torch.float32
    strided = draw_images(2).contiguous(memory_format=torch.channels_last)
    assert torch.equal(backbone(strided), backbone(draw_images(2)))


def test_it_is_no_student(tmp_path: Path) -> None:
    backbone = create_backbone(f"onnx:{face_net(tmp_path / 'net.onnx')}")
    with pytest.raises(ConfigError, match="save_student"):
        save_student(tmp_path / "student.pt", backbone, InputSpec())
    assert not (tmp_path / "student.pt").exists()


def test_half_precision_is_cast_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["out"]),
    ]
    values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT16, s)] for n, s in
              (("images", ["N", 3, 16, 16]), ("out", ["N", 3]))]  # fmt: skip
    backbone = OnnxBackbone(path=save(path, helper.make_graph(nodes, "half", *values)))
    images = draw_images(2, 16)
    embeddings = backbone(images)
    assert embeddings.dtype == torch.float32
    np.testing.assert_allclose(embeddings.numpy(), images.mean(dim=(2, 3)).numpy(), atol=1e-3)


def test_settings_must_fit_the_file(tmp_path: Path) -> None:
    path = face_net(tmp_path / "net.onnx")
    assert create_backbone(f"onnx:{path}", embedding_dim=8, input_size=(32, 32)).embedding_dim == 8
    with pytest.raises(ConfigError, match=r"embedding_dim 512 was given, but .*net\.onnx gives embeddings of 8"):
        create_backbone(f"onnx:{path}", embedding_dim=512)
    with pytest.raises(ConfigError, match=r"input_size \[112, 112\] was given, but .* takes images of 32 x 32 pixels"):
        create_backbone(f"onnx:{path}", input_size=(112, 112))
    with pytest.raises(ConfigError, match="has no option 'width'; it takes path, embedding_dim, input_size"):
        create_backbone(f"onnx:{path}", width=2)
    with pytest.raises(ConfigError, match="takes its network from the name"):
        create_backbone(f"onnx:{path}", path="other.onnx")


def test_an_open_image_size_takes_the_option(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["out"]),
    ]
    values = [[helper.make_tensor_value_info(n, FLOAT, s)] for n, s in
              (("images", ["N", 3, "H", "W"]), ("out", ["N", 3]))]  # fmt: skip
    path = save(tmp_path / "open.onnx", helper.make_graph(nodes, "open", *values))
    assert OnnxBackbone(path=path).input_size == (112, 112)
    backbone = OnnxBackbone(path=path, input_size=(48, 32))
    assert backbone(torch.zeros(2, 3, 48, 32)).shape == (2, 3)
    with pytest.raises(ConfigError, match=r"takes images \(N, 3, 48, 32\), got \(2, 3, 32, 48\)"):
        backbone(torch.zeros(2, 3, 32, 48))
    with pytest.raises(ConfigError, match=r"input_size\[1\] must be an integer from 16 to 1024, got 4"):
        OnnxBackbone(path=path, input_size=(48, 4))


def test_nan_is_an_error_when_it_appears(tmp_path: Path) -> None:
    one = numpy_helper.from_array(np.array([9.0], dtype=np.float32), "nine")
    pre = [helper.make_node("Add", ["images", "nine"], ["raised"]), helper.make_node("Sqrt", ["raised"], ["root"])]
    backbone = OnnxBackbone(path=face_net(tmp_path / "net.onnx", pre=pre, source="root", stored=[one]))
    images = torch.zeros(3, 3, 32, 32)
    assert torch.isfinite(backbone(images)).all()
    images[1] = -20
    with pytest.raises(CheckpointError, match=r"net\.onnx: gives NaN or infinite embeddings for 1 of 3 images"):
        backbone(images)


def test_without_cuda_it_warns_once_and_runs_on_the_cpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = OnnxBackbone(path=face_net(tmp_path / "net.onnx"))
    monkeypatch.setattr(onnx_backbone, "_available_providers", lambda: ["CPUExecutionProvider"])
    sessions = {id(backbone._session(torch.device(name))) for name in ("cuda:0", "cuda:0", "cpu")}
    assert len(sessions) == 1
    assert caplog.text.count("onnxruntime has no CUDA here, so this network runs on the CPU") == 1


def test_threads_are_torchs(tmp_path: Path) -> None:
    session = OnnxBackbone(path=face_net(tmp_path / "net.onnx"))._session(torch.device("cpu"))
    assert session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    contents = {
        b"": "is empty; export or download it again",
        b"\n<!DOCTYPE html><html>": "is an HTML or XML page, not an ONNX file",
        b"version https://git-lfs.github.com/spec/v1\n": "is a text file, not an ONNX file",
        pickle.dumps({"weight": 1}): "is a pickle, not an ONNX file",
        b"PK\x03\x04\x00\x00": "is a zip archive, such as torch.save writes, not an ONNX file",
        bytes(range(256)) * 4: "truncated",
        b"\x08\x08": "it has no complete graph",
    }
    for content, message in contents.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            OnnxBackbone(path=path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.onnx: no such file"):
        create_backbone(f"onnx:{tmp_path / 'gone.onnx'}")
    with pytest.raises(CheckpointError, match="is a folder, but a file is needed"):
        create_backbone(f"onnx:{tmp_path}")
    with pytest.raises(CheckpointError, match="is a folder"):
        create_backbone("onnx:")


def test_a_file_larger_than_onnx_can_be_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(CheckpointError, match="2,147,483,648 bytes is more than the 2 GiB"):
        OnnxBackbone(path=path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = face_net(tmp_path / "net.onnx", batch=1)
    content = path.read_bytes()
    for length in [1, 2, 3, *range(7, len(content) - 1, len(content) // 40), len(content) - 4, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"net\.onnx: ") as caught:
            OnnxBackbone(path=path)
        assert "\n" not in str(caught.value)


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    path = face_net(tmp_path / "net.onnx", batch=1, target=[1, -1])
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    outcomes = set()
    for place in generator.integers(0, len(content), 600):
        damaged = content.copy()
        damaged[place] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            OnnxBackbone(path=path)
            outcomes.add("taken")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"taken", "refused"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (
            {"ids": (TensorProto.INT64, ["N", 77])},
            {"out": (FLOAT, ["N", 8])},
            r"but it has inputs ids int64 \(\?, 77\)",
        ),
        (
            {"images": (FLOAT, ["N", 3, 32, 32]), "mask": (FLOAT, ["N", 8])},
            {"out": (FLOAT, ["N", 8])},
            r"takes one float input of images \(N, 3, H, W\), .* inputs images .*, mask float \(\?, 8\) and outputs",
        ),
        ({"images": (FLOAT, ["N", 32, 32, 3])}, {"out": (FLOAT, ["N", 8])}, r"images float \(\?, 32, 32, 3\)"),
        ({"images": (FLOAT, ["N", 1, 32, 32])}, {"out": (FLOAT, ["N", 8])}, r"images float \(\?, 1, 32, 32\)"),
        ({"images": (TensorProto.UINT8, ["N", 3, 32, 32])}, {"out": (FLOAT, ["N", 8])}, "images uint8"),
        ({"images": (FLOAT, ["N", 3, 4, 4])}, {"out": (FLOAT, ["N", 8])}, "must be 16 to 1024 pixels"),
        (
            {"images": (FLOAT, ["N", 3, 32, 32])},
            {"out": (FLOAT, ["N", 3, 32, 32])},
            r"gives one float output .*\(N, D\)",
        ),
        (
            {"images": (FLOAT, ["N", 3, 32, 32])},
            {"out": (FLOAT, ["N", 1])},
            r"D from 2 to 16,384, .* out float \(\?, 1\)",
        ),
        ({"images": (FLOAT, ["N", 3, 32, 32])}, {"out": (FLOAT, ["N", 20_000])}, r"out float \(\?, 20000\)"),
        ({"images": (FLOAT, ["N", 3, 32, 32])}, {"out": (TensorProto.INT64, ["N", 8])}, r"out int64 \(\?, 8\)"),
        (
            {"images": (FLOAT, ["N", 3, 32, 32])},
            {"one": (FLOAT, ["N", 8]), "two": (FLOAT, ["N", 8])},
            r"one float \(\?, 8\), two float \(\?, 8\)",
        ),
    ],
)
def test_a_network_of_another_kind_is_refused(
    tmp_path: Path, inputs: dict[str, Any], outputs: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / "net.onnx", plain_graph(inputs, outputs))
    with pytest.raises(CheckpointError, match=message):
        OnnxBackbone(path=path)


def test_an_output_that_lies_about_its_shape_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", plain_graph({"images": (FLOAT, ["N", 3, 32, 32])}, {"out": (FLOAT, [])}))
    model = load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        CheckpointError, match=r"gives \(1, 3, 32, 32\) for 1 images, but embeddings \(N, D\) are needed"
    ):
        OnnxBackbone(path=path)


def test_one_embedding_beside_other_outputs_is_found(tmp_path: Path) -> None:
    model = load(face_net(tmp_path / "net.onnx"))
    model.graph.output.append(helper.make_tensor_value_info("pooled", FLOAT, ["N", 4, 2, 2]))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    check_against_reference(OnnxBackbone(path=tmp_path / "net.onnx"))


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_data_in_other_files_is_refused(tmp_path: Path, place: str) -> None:
    path = face_net(tmp_path / "net.onnx")
    model = load(path)
    tensor = numpy_helper.from_array(np.zeros(3, dtype=np.float32), "far")
    if place == "initializer":
        tensor = model.graph.initializer[0]
    elif place == "constant":
        tensor = next(node for node in model.graph.node if node.op_type == "Constant").attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    if place == "subgraph":
        inner = helper.make_graph([helper.make_node("Constant", [], ["out"], value=tensor)], "inner", [], [])
        model.graph.node.append(helper.make_node("If", ["flag"], ["out"], then_branch=inner, else_branch=inner))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"refused, since its tensor .* lies in another file"):
        OnnxBackbone(path=path)


def test_foreign_operators_are_refused_and_local_functions_are_not(tmp_path: Path) -> None:
    pre = [helper.make_node("Double", ["images"], ["twice"], domain="some.where")]
    model = load(face_net(tmp_path / "net.onnx", pre=pre, source="twice"))
    path = save(tmp_path / "foreign.onnx", model.graph, domains=["some.where"])
    with pytest.raises(
        CheckpointError, match=r"uses the operator 'Double' of 'some.where', which is not onnxruntime's"
    ):
        OnnxBackbone(path=path)
    body = [helper.make_node("Add", ["x", "x"], ["y"])]
    double = helper.make_function("some.where", "Double", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    path = save(tmp_path / "local.onnx", model.graph, domains=["some.where"], functions=[double])
    images = draw_images(2)
    embeddings = OnnxBackbone(path=path)(images).numpy()
    np.testing.assert_allclose(embeddings, reference(2 * images.numpy()), rtol=1e-4, atol=1e-5)


def test_an_operator_that_does_not_exist_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pre = [helper.make_node("Doubble", ["images"], ["twice"])]
    path = face_net(tmp_path / "net.onnx", pre=pre, source="twice")
    with pytest.raises(CheckpointError, match=r"net\.onnx: onnxruntime cannot load it: .*Doubble"):
        OnnxBackbone(path=path)
    assert capfd.readouterr() == ("", "")


def test_an_output_of_another_shape_than_declared_stays_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    OnnxBackbone(path=face_net(tmp_path / "net.onnx", output_shape=[1, 8]))(draw_images(3))
    assert capfd.readouterr() == ("", "")


@pytest.mark.real
def test_a_pretrained_network_of_batch_one_is_opened(real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backbone = create_backbone(f"onnx:{real_data / 'models' / 'mobilefacenet128.onnx'}")
    assert isinstance(backbone, OnnxBackbone)
    assert (backbone.embedding_dim, backbone.input_size, backbone.batch_size) == (128, (112, 112), None)
    images = draw_images(3, 112)
    singly = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(backbone(images), singly, rtol=1e-3, atol=1e-4)


@pytest.mark.real
def test_a_face_detector_is_refused(real_data: Path) -> None:
    with pytest.raises(CheckpointError, match=r"but it has inputs input float \(1, 3, 640, 640\) and outputs cls_8"):
        create_backbone(f"onnx:{real_data / 'models' / 'yunet_640.onnx'}")
