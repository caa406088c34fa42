"""Files as each project writes them: found, filled, run, and said of them what is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gkd.core.errors import CheckpointError, ConfigError
from gkd.data import PairSet
from gkd.data.transforms import decode_image
from gkd.models import Backbone, InputSpec, OnnxBackbone, create_backbone, load_network, load_weights
from gkd.models.contents import shapes_of
from gkd.models.families import describe_family
from gkd.models.weight_sources import SOURCES
from tests.models import onnx_nets

State = dict[str, Tensor]

NETS: dict[str, dict[str, Any]] = {
    "iresnet18": {"width_multiplier": 0.0625},
    "iresnet": {"layers": (1, 2, 1, 1), "width_multiplier": 0.0625},
    "ir18": {"width_multiplier": 0.0625},
    "ir": {"layers": (1, 1, 2, 1), "width_multiplier": 0.0625},
    "mobilefacenet": {"blocks": (1, 1, 1, 1), "scale": 1},
    "mobilefacenet_classic": {"width_multiplier": 0.125},
    "mobilefacenet_facex": {"width_multiplier": 0.125},
    "mobilefacenet_relu6": {"width_multiplier": 0.125},
}
RGB = InputSpec()
BGR = InputSpec(color="bgr")
BGR_128 = InputSpec(color="bgr", std=(128.0,) * 3)
BGR_UNIT = InputSpec(color="bgr", mean=(0.0,) * 3, std=(255.0,) * 3)
IMAGENET = InputSpec(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def tiny(name: str, seed: int = 0, **changes: Any) -> Backbone:
    torch.manual_seed(seed)
    backbone = create_backbone(name, **{"embedding_dim": 8, "input_size": (64, 64), **NETS[name], **changes})
    with torch.no_grad():
        backbone(torch.randn(4, 3, *backbone.input_size))  # statistics that differ from their initial values
    return backbone.eval()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def adaface(state: State) -> dict[str, Any]:
    head = {"head.kernel": torch.randn(8, 11), "head.t": torch.zeros(1), "head.batch_mean": torch.ones(1)}
    return {"epoch": 3, "state_dict": {**prefixed("model.", state), **head}, "lr_schedulers": [{"gamma": 0.1}]}


def magface_parallel(state: State) -> dict[str, Any]:
    inner = {**prefixed("features.module.", state), "parallel_fc.weight": torch.randn(11, 8)}
    return {"epoch": 25, "arch": "iresnet100", "state_dict": inner, "optimizer": {}}


def magface_data_parallel(state: State) -> dict[str, Any]:
    inner = {**prefixed("module.features.", state), "module.fc.weight": torch.randn(8, 11)}
    return {"epoch": 25, "arch": "iresnet100", "state_dict": inner}


def facex(state: State) -> dict[str, Any]:
    inner = {**prefixed("backbone.", state), "head.weight": torch.randn(8, 11)}
    return {"state_dict": inner, "epoch": 17, "batch_id": 5}


def arcface(state: State) -> dict[str, Any]:
    head = {"weight": torch.randn(6, 8)}
    return {"epoch": 2, "global_step": 9, "state_dict_backbone": state, "state_dict_softmax_fc": head}


# Network, how it is wrapped, then what must be said: source, prefix, input, whether that is certain, classes.
Wrap = Callable[[State], dict[str, Any]]
FILES: dict[str, tuple[str, Wrap, str, str, InputSpec, bool, int | None]] = {
    "arcface_torch iresnet": ("iresnet18", dict, "arcface_torch backbone layout", "", RGB, False, None),
    "arcface_torch mbf": ("mobilefacenet", dict, "arcface_torch backbone layout", "", RGB, False, None),
    "arcface_torch run": ("iresnet", arcface, "arcface_torch training checkpoint", "", RGB, True, None),
    "arcface_torch mbf run": ("mobilefacenet", arcface, "arcface_torch training checkpoint", "", RGB, True, None),
    "AdaFace": ("ir18", adaface, "AdaFace checkpoint", "model.", BGR, True, 11),
    "AdaFace without head": (
        "ir",
        lambda state: {"state_dict": prefixed("model.", state)},
        "AdaFace network",
        "model.",
        BGR,
        False,
        None,
    ),
    "CVLface": ("ir18", lambda state: prefixed("net.", state), "CVLface network", "net.", RGB, False, None),
    "CVLface iresnet": ("iresnet18", lambda s: prefixed("net.", s), "CVLface network", "net.", RGB, False, None),
    "TFace": ("ir", dict, "TFace backbone layout", "", RGB, False, None),
    "TFace in DDP": (
        "ir",
        lambda state: prefixed("module.", state),
        "TFace backbone layout",
        "module.",
        RGB,
        False,
        None,
    ),
    "TFace MobileFaceNet": (
        "mobilefacenet_classic",
        dict,
        "TFace or AdaDistill MobileFaceNet layout",
        "",
        RGB,
        False,
        None,
    ),
    "FaceX-Zoo": ("mobilefacenet_facex", facex, "FaceX-Zoo checkpoint", "backbone.", BGR_128, True, 11),
    "FaceX-Zoo plain": ("mobilefacenet_facex", dict, "FaceX-Zoo MobileFaceNet layout", "", BGR_128, False, None),
    "MagFace": ("iresnet18", magface_parallel, "MagFace checkpoint", "features.module.", BGR_UNIT, True, 11),
    "MagFace on one": ("iresnet", magface_data_parallel, "MagFace checkpoint", "module.features.", BGR_UNIT, True, 11),
    "foamliu": ("mobilefacenet_relu6", dict, "foamliu MobileFaceNet", "", IMAGENET, True, None),
}


def test_every_source_has_a_file() -> None:
    assert {entry[2] for entry in FILES.values()} == {source.name for source in SOURCES}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_each_project(kind: str, tmp_path: Path) -> None:
    name, wrap, source, prefix, input_spec, is_certain, num_classes = FILES[kind]
    backbone = tiny(name)
    path = tmp_path / "weights.pth"
    torch.save(wrap(dict(backbone.state_dict())), path)
    state = torch.random.get_rng_state()
    loaded, report = load_network(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(loaded) is type(backbone)
    assert (loaded.training, loaded.embedding_dim, loaded.input_size) == (False, 8, (64, 64))
    images = torch.randn(3, 3, 64, 64)
    tolerance = 1e-3 if source.startswith("MagFace") else 0.0  # its BatchNorm has another eps
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), backbone(images), atol=tolerance, rtol=tolerance)
    assert report.path == path
    assert (report.source, report.stripped_prefix, report.input_spec) == (source, prefix, input_spec)
    assert (report.is_input_certain, report.num_classes) == (is_certain, num_classes)
    assert report.num_tensors == len(backbone.state_dict())
    assert report.family.endswith(f"({report.num_tensors} tensors)")
    assert report.family.startswith(name)
    assert report.architecture == loaded.architecture
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.input_reason
    target = tiny(name, seed=1)
    assert load_weights(target, path) == type(report)(**{**vars(report), "architecture": target.architecture})
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(target.state_dict()[key], tensor)


@pytest.mark.parametrize("kind", ["AdaFace", "MagFace", "FaceX-Zoo"])
def test_the_head_is_told_of(kind: str, tmp_path: Path) -> None:
    name, wrap, *_ = FILES[kind]
    torch.save(wrap(dict(tiny(name).state_dict())), tmp_path / "w.pt")
    assert "head of 11 classes left out" in load_network(tmp_path / "w.pt")[1].notes


def test_one_rank_of_a_run_is_told_of(tmp_path: Path) -> None:
    torch.save(arcface(dict(tiny("iresnet").state_dict())), tmp_path / "checkpoint_gpu_0.pt")
    _, report = load_network(tmp_path / "checkpoint_gpu_0.pt")
    assert (report.num_classes, report.notes) == (None, ("head of one rank with 6 classes left out",))


def test_adaface_embeddings_are_raw(tmp_path: Path) -> None:
    torch.save(adaface(dict(tiny("ir").state_dict())), tmp_path / "w.ckpt")
    _, report = load_network(tmp_path / "w.ckpt")
    assert "AdaFace divides the embedding by its length in its own code; here it is raw" in report.notes


def test_magface_batch_norm_has_its_own_eps(tmp_path: Path) -> None:
    backbone = tiny("iresnet")
    torch.save(magface_parallel(dict(backbone.state_dict())), tmp_path / "w.pth")
    loaded, _ = load_network(tmp_path / "w.pth")
    norms = [module for module in loaded.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) > 10
    assert {module.eps for module in norms} == {2e-5}
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 2e-5
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), backbone(images))


@pytest.mark.parametrize("kind", ["arcface_torch iresnet", "CVLface", "TFace MobileFaceNet"])
def test_the_same_as_safetensors(kind: str, tmp_path: Path) -> None:
    name, wrap, source, prefix, input_spec, *_ = FILES[kind]
    backbone = tiny(name)
    save_file(
        {key: value.contiguous() for key, value in wrap(dict(backbone.state_dict())).items()},
        tmp_path / "w.safetensors",
    )
    loaded, report = load_network(tmp_path / "w.safetensors")
    assert (report.source, report.stripped_prefix, report.input_spec) == (source, prefix, input_spec)
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in backbone.state_dict().items())


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    backbone = tiny("ir").half()
    torch.save(backbone.state_dict(), tmp_path / "w.pt")
    loaded, _ = load_network(tmp_path / "w.pt")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(
        loaded.state_dict()["input_layer.0.weight"], backbone.float().state_dict()["input_layer.0.weight"]
    )


def test_a_loaded_network_can_be_trained_on(tmp_path: Path) -> None:
    torch.save(tiny("ir").state_dict(), tmp_path / "w.pt")
    loaded, _ = load_network(tmp_path / "w.pt")
    loaded.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters() if parameter.requires_grad)


def test_mbf_large_is_an_option_of_ours(tmp_path: Path) -> None:
    backbone = tiny("mobilefacenet", blocks=(2, 3, 4, 2), scale=4)
    torch.save(backbone.state_dict(), tmp_path / "w.pt")
    _, report = load_network(tmp_path / "w.pt")
    assert (report.architecture["blocks"], report.architecture["scale"]) == ([2, 3, 4, 2], 4)


COUNTS = [
    ("iresnet100", {}, 925, "iresnet100 (925 tensors)"),
    ("ir101", {}, 917, "ir101 (917 tensors)"),
    ("mobilefacenet", {}, 333, "mobilefacenet (333 tensors)"),
    ("mobilefacenet_classic", {}, 331, "mobilefacenet_classic (331 tensors)"),
    ("mobilefacenet_facex", {}, 333, "mobilefacenet_facex (333 tensors)"),
    ("mobilefacenet_relu6", {"embedding_dim": 128}, 307, "mobilefacenet_relu6 (307 tensors)"),
]


@pytest.mark.parametrize(("name", "options", "count", "family"), COUNTS)
def test_real_sizes_are_those_of_the_public_files(name: str, options: dict[str, Any], count: int, family: str) -> None:
    with torch.device("meta"):
        shapes = shapes_of(create_backbone(name, **options).state_dict())
    assert (len(shapes), describe_family(shapes)) == (count, family)


def test_an_image_size_that_shows_only_its_sixteenth(tmp_path: Path) -> None:
    torch.save(tiny("ir", input_size=(60, 60)).state_dict(), tmp_path / "w.pt")
    assert load_network(tmp_path / "w.pt")[0].input_size == (64, 64)
    assert load_network(tmp_path / "w.pt", input_size=(60, 60))[0].input_size == (60, 60)
    with pytest.raises(CheckpointError, match=r"does not fit .*output_layer\.3\.weight has shape \[8, 512\]"):
        load_network(tmp_path / "w.pt", input_size=(112, 112))


def test_the_917_key_family_is_not_the_925_key_family(tmp_path: Path) -> None:
    torch.save(adaface(dict(tiny("ir18").state_dict())), tmp_path / "w.ckpt")
    message = (
        r"holds ir18 of width 4 \(\d+ tensors\), which does not fit iresnet18 of width 4 \(187 tensors\): missing 187 "
        r"tensors: .*; unexpected \d+ tensors: "
    )
    with pytest.raises(CheckpointError, match=message):
        load_weights(tiny("iresnet18"), tmp_path / "w.ckpt")


def facex_resnet() -> State:
    """The ResNet of FaceX-Zoo: names of the 917-key family, but no BatchNorm between the convolutions of a block."""
    state = {"input_layer.0.weight": torch.zeros(8, 3, 3, 3)}
    for block in range(24):
        state |= {f"body.{block}.res_layer.{index}.weight": torch.zeros(8) for index in range(5)}
    return state


def test_what_is_in_an_unknown_network_is_said(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"state_dict": prefixed("backbone.", facex_resnet()), "epoch": 3}, path)
    message = (
        r"w\.pt: holds no network of a known family: found the keys state_dict, epoch, the prefix `backbone\.`, 121 "
        r"tensors: body\.\* 120, input_layer\.\* 1; the nearest family is ir50 \(\d+ tensors\), but missing \d+ tensors"
    )
    with pytest.raises(CheckpointError, match=message):
        load_network(path)


def test_names_of_no_family_are_said_to_be_so(tmp_path: Path) -> None:
    torch.save({f"blocks.{index}.weight": torch.zeros(2) for index in range(9)}, tmp_path / "w.pt")
    message = r"found 9 tensors: blocks\.\* 9; no family has such names; known are iresnet18, "
    with pytest.raises(CheckpointError, match=message):
        load_network(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("output_layer.3.bias"), r"missing 1 tensors: output_layer\.\* 1"),
        (lambda state: state.update(extra=torch.zeros(2)), r"unexpected 1 tensors: extra\.\* 1"),
        (lambda state: state.update({"head.kernel": torch.zeros(8, 3)}), r"unexpected 1 tensors: head\.\* 1"),
        (lambda state: state.update({"output_layer.3.bias": torch.zeros(9)}), r"output_layer\.3\.bias has shape \[9\]"),
        (lambda state: state.update({"input_layer.0.weight": torch.zeros(())}), "holds no network of a known family"),
        (lambda state: state.update({"output_layer.3.bias": torch.full((8,), float("nan"))}), "8 values that are NaN"),
    ],
)
def test_a_network_must_fit_to_the_last_tensor(change: Any, message: str, tmp_path: Path) -> None:
    state = dict(tiny("ir").state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message):
        load_network(tmp_path / "w.pt")


def test_tensors_beside_a_prefixed_network_are_refused(tmp_path: Path) -> None:
    state = {**prefixed("net.", dict(tiny("ir").state_dict())), "aligner.weight": torch.zeros(3)}
    torch.save(state, tmp_path / "w.pt")
    message = r"holds ir with layers .* under `net\.` and beside it 1 tensors that belong to no known head"
    for load in (load_network, lambda path: load_weights(tiny("ir"), path)):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "w.pt")


def test_an_onnx_file(tmp_path: Path) -> None:
    path = onnx_nets.face_net(tmp_path / "net.onnx")
    loaded, report = load_network(path)
    assert isinstance(loaded, OnnxBackbone)
    assert (report.source, report.input_spec, report.is_input_certain) == ("ONNX file", None, False)
    assert report.architecture == {"name": f"onnx:{path}"}
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.family == f"ONNX network ({report.num_tensors} tensors)"
    assert report.num_tensors > 0
    with pytest.raises(ConfigError, match=r"input_size \[48, 48\] was given, but"):
        load_network(path, input_size=(48, 48))


@pytest.mark.real
def test_the_pretrained_network_equals_its_onnx_twin(real_data: Path) -> None:
    loaded, report = load_network(real_data / "models" / "mobilefacenet128.pt")
    twin, _ = load_network(real_data / "models" / "mobilefacenet128.onnx")
    assert (report.family, report.input_spec) == ("mobilefacenet_relu6 (307 tensors)", IMAGENET)
    assert report.architecture["embedding_dim"] == 128
    pairs = PairSet.load(real_data / "lfw" / "lfw.bin")
    faces = [decode_image(image, (112, 112), "a face") for image in pairs.images[:12]]
    assert report.input_spec is not None
    images = report.input_spec.convert(torch.from_numpy(np.stack(faces)).movedim(-1, 1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), twin(images), atol=1e-4, rtol=1e-4)
