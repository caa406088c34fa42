"""student.pt and load_weights: round trips, other families, prefixes, damaged and hostile files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gkd.core.errors import CheckpointError, ConfigError
from gkd.models import (
    Backbone,
    InputSpec,
    contents,
    create_backbone,
    load_network,
    load_student,
    load_weights,
    safetensors_file,
    save_student,
)

SPEC = InputSpec(color="bgr", mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
EXTRA = {"accuracy": 0.5, "step": 7, "data": "abc", "sets": ["lfw", None], "nested": {"is_best": True}}
KINDS = {
    "iresnet": {"layers": (1, 1, 1, 1), "width_multiplier": 0.0625},
    "mobilefacenet": {"blocks": (1, 1, 1, 1), "scale": 1},
    "mobilefacenet_classic": {"width_multiplier": 0.125},
}


def tiny(name: str = "iresnet", seed: int = 0, **changes: Any) -> Backbone:
    torch.manual_seed(seed)
    backbone = create_backbone(name, **{"embedding_dim": 8, "input_size": (32, 16), **KINDS.get(name, {}), **changes})
    with torch.no_grad():
        backbone(torch.randn(4, 3, *backbone.input_size))  # statistics that differ from their initial values
    return backbone


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
    )


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "student.pt"
    save_student(path, tiny(), SPEC, EXTRA)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_student_round_trip(name: str, tmp_path: Path) -> None:
    backbone = tiny(name)
    save_student(tmp_path / "a" / "student.pt", backbone, SPEC, EXTRA)
    loaded, spec, extra = load_student(tmp_path / "a" / "student.pt")
    assert same(loaded.state_dict(), backbone.state_dict())
    assert (spec, extra) == (SPEC, EXTRA)
    assert loaded.architecture == backbone.architecture
    assert not loaded.training
    images = torch.randn(2, 3, 32, 16)
    assert torch.equal(loaded(images), backbone.eval()(images))


def test_a_loaded_student_can_be_trained_and_saved_again(saved: Path, tmp_path: Path) -> None:
    loaded, spec, extra = load_student(saved)
    frozen = [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad]
    assert frozen == ["features.weight"]
    save_student(tmp_path / "again.pt", loaded, spec, extra)
    for suffix in (".pt", ".safetensors"):
        assert (tmp_path / "again").with_suffix(suffix).read_bytes() == saved.with_suffix(suffix).read_bytes()


def test_student_of_a_timm_network_round_trips(tmp_path: Path) -> None:
    backbone = tiny("timm:resnet10t", input_size=(32, 32))
    save_student(tmp_path / "student.pt", backbone, SPEC)
    loaded, _, _ = load_student(tmp_path / "student.pt")
    assert same(loaded.state_dict(), backbone.state_dict())


def test_student_of_a_network_with_tensors_outside_its_state(tmp_path: Path) -> None:
    backbone = tiny("timm:swinv2_cr_tiny_ns_224", input_size=(224, 224))
    save_student(tmp_path / "student.pt", backbone, SPEC)
    loaded, _, _ = load_student(tmp_path / "student.pt")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(loaded(images), backbone.eval()(images))


def test_loading_moves_no_random_numbers(saved: Path) -> None:
    before = torch.random.get_rng_state()
    load_student(saved)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_file_needs_no_class_of_ours(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert content["format"] == "gkd.student"
    assert content["input"] == {"color": "bgr", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "size": [32, 16]}
    assert all(type(tensor) is Tensor for tensor in content["state_dict"].values())


def test_a_failed_save_keeps_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    broken = tiny()
    with torch.no_grad():
        broken.get_parameter("fc.bias")[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"fc\.bias has 1 values that are NaN or infinite"):
        save_student(saved, broken, SPEC)
    assert saved.read_bytes() == before
    assert sorted(saved.parent.iterdir()) == [saved, saved.with_suffix(".safetensors")]


def test_saving_a_network_of_unknown_settings_is_refused(tmp_path: Path) -> None:
    backbone = tiny()
    backbone.architecture = {}
    with pytest.raises(ConfigError, match="save_student needs a backbone that create_backbone built"):
        save_student(tmp_path / "student.pt", backbone, SPEC)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"a": object()}, r"extra\.a must be a plain value"),
        ({"a": {1: 2}}, r"extra\.a has the key 1; keys must be text"),
        ({"a": [float("inf")]}, r"extra\.a\[0\] must be finite, got inf"),
        ({"a": [[[[[[[[[1]]]]]]]]]}, "is nested more than 8 deep"),
        ({"a": torch.zeros(1)}, r"extra\.a must be a plain value"),
    ],
)
def test_extra_must_be_plain(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_student(tmp_path / "student.pt", tiny(), SPEC, extra)


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = torch.load(path, weights_only=True)
    change(content)
    return write(path, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="gkd.head"), "is not a gkd.student file but a gkd.head file"),
        (lambda c: c.update(format=torch.zeros(2)), "is not a gkd.student file"),
        (lambda c: c.update(format_version=2), "has gkd.student version 2, this gkd reads version 1; update gkd"),
        (lambda c: c.update(format_version=torch.ones(2)), "has gkd.student version tensor"),
        (lambda c: c.pop("extra"), "fields missing or unknown: extra"),
        (lambda c: c.update(more=1), "fields missing or unknown: more"),
        (lambda c: c.update(architecture="iresnet18"), "architecture must be a dict with a name, got iresnet18"),
        (lambda c: c["architecture"].update(name="iresnet19"), "unknown backbone 'iresnet19'; did you mean"),
        (lambda c: c.update(architecture={"name": "onnx:/etc/passwd"}), "architecture names another file, 'onnx:/etc/"),
        (lambda c: c["architecture"].update(name="timm:hf-hub:a/b"), "has no option|has no network"),
        (lambda c: c["architecture"].update(layers=[10**9] * 4), r"layers\[0\] must be an integer from 1 to 200"),
        (lambda c: c["architecture"].update(depth=3), "backbone iresnet has no option 'depth'"),
        (lambda c: c["architecture"].update(layers=[1, 2, 1, 1]), r"does not fit .* missing 18 tensors: layer2\.\* 18"),
        (lambda c: c["architecture"].update(embedding_dim=9), r"fc.weight has shape \[8, 64\], expected \[9, 64\]"),
        (lambda c: c["architecture"].update(dropout=torch.zeros(1)), "dropout must be a plain value"),
        (lambda c: c["input"].update(color="hsv"), "input color must be rgb or bgr, got 'hsv'"),
        (lambda c: c["input"].update(std=[0.0, 1.0, 1.0]), "input std must be above 0"),
        (lambda c: c["input"].update(mean=[float("nan")] * 3), "mean.* must be finite"),
        (lambda c: c["input"].update(size=[112, 112]), r"input size \[112, 112\] differs .* \[32, 16\]"),
        (lambda c: c["input"].pop("color"), "input must hold color, mean, std and size"),
        (lambda c: c.update(state_dict=[]), "state_dict must be a dict of named tensors, got list"),
        (lambda c: c.update(state_dict={}), "state_dict must be a dict of named tensors"),
        (lambda c: c["state_dict"].update({"fc.bias": 3}), "'fc.bias' is not a tensor but int"),
        (lambda c: c["state_dict"].update({"fc.bias": torch.zeros(8).half()}), "fc.bias is torch.float16, expected"),
        (
            lambda c: c["state_dict"].update({"fc.bias": torch.zeros(8).to_sparse()}),
            "fc.bias is not an ordinary tensor",
        ),
        (lambda c: c["state_dict"].update({"fc.bias": torch.zeros(8, device="meta")}), "not an ordinary tensor"),
        (lambda c: c["state_dict"].update({"fc.bias": torch.zeros(1).expand(10**9)}), "claims more values than it"),
        (
            lambda c: c["state_dict"].update({"fc.bias": torch.full((8,), float("inf"))}),
            "fc.bias has 8 values that are",
        ),
        (lambda c: c["state_dict"].update({"fc.bias": torch.zeros(8).to(torch.float8_e5m2)}), "a type no backbone"),
        (lambda c: c["architecture"].update(embedding_dim=10**500), "embedding_dim is an integer of more than 64"),
        (lambda c: c.update(extra={"a": torch.zeros(2)}), "extra.a must be a plain value"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_every_field_of_a_hostile_student_is_checked(change: Any, message: str, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_student(changed(saved, change))
    assert str(saved) in str(caught.value)


def test_values_that_unfold_without_end_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gkd.models.contents.MAX_ITEMS", 10_000)
    folded: Any = 1
    for _ in range(7):
        folded = [folded] * 100
    with pytest.raises(CheckpointError, match="among more than 10000 items"):
        load_student(changed(saved, lambda content: content.update(extra={"a": folded})))


class Runs:
    """A value whose unpickling would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["whole", "extra", "state_dict", "bare pickle"])
def test_no_code_in_a_file_runs(where: str, saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    if where == "bare pickle":
        saved.write_bytes(pickle.dumps(Runs(mark)))
    else:
        content = torch.load(saved, weights_only=True)
        write(saved, Runs(mark) if where == "whole" else {**content, where: {"x": Runs(mark)}})
    for load in (load_student, lambda path: load_weights(tiny(), path)):
        with pytest.raises(CheckpointError, match=r"student\.pt"):
            load(saved)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"not weights\n", b"<!DOCTYPE html><html></html>", b"\x80\x02garbage"])
def test_files_that_are_no_weights(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        load_student(path)
    with pytest.raises(CheckpointError, match=r"weights\.pt"):
        load_weights(tiny(), path)


def test_truncated_missing_and_folder(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    for kept in (len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"student\.pt"):
            load_student(saved)
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            load_student(path)


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "net.", "backbone.", "features.module.", "module.features."]
)
@pytest.mark.parametrize("name", KINDS)
def test_plain_state_dict_with_a_known_prefix(name: str, prefix: str, tmp_path: Path) -> None:
    source, target = tiny(name), tiny(name, seed=1)
    path = write(tmp_path / "w.pt", {prefix + key: tensor for key, tensor in source.state_dict().items()})
    report = load_weights(target, path)
    assert same(target.state_dict(), source.state_dict())
    assert (report.path, report.stripped_prefix) == (path, prefix)
    assert report.num_tensors == len(source.state_dict())
    assert report.family.endswith(f"({report.num_tensors} tensors)")


def test_load_weights_takes_a_student(saved: Path) -> None:
    target = tiny(seed=1)
    report = load_weights(target, saved)
    assert report.family == "iresnet with layers [1, 1, 1, 1] of width 4 (115 tensors)"
    assert (report.source, report.input_spec, report.is_input_certain) == ("student file of this project", SPEC, True)
    assert (report.input_reason, report.architecture) == ("the file says so", target.architecture)
    assert same(target.state_dict(), tiny().state_dict())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", [*KINDS, "timm:resnet10t"])
def test_load_network_takes_a_student(name: str, suffix: str, tmp_path: Path) -> None:
    backbone = tiny(name, input_size=(32, 32))
    save_student(tmp_path / "student.pt", backbone, SPEC)
    loaded, report = load_network(tmp_path / f"student{suffix}", input_size=(32, 32))
    assert same(loaded.state_dict(), backbone.state_dict())
    assert (loaded.training, loaded.architecture) == (False, backbone.architecture)
    assert (report.input_spec, report.architecture) == (SPEC, backbone.architecture)
    with pytest.raises(ConfigError, match=r"input_size \[64, 64\] was given, but .*student.* says \[32, 32\]"):
        load_network(tmp_path / f"student{suffix}", input_size=(64, 64))


def test_load_weights_keeps_the_dtype_of_the_network(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", tiny().half().state_dict())
    target = tiny(seed=1)
    load_weights(target, path)
    assert {tensor.dtype for tensor in target.state_dict().values()} == {torch.float32, torch.int64}


def test_only_one_prefix_is_stripped(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {f"module.backbone.{key}": value for key, value in tiny().state_dict().items()})
    with pytest.raises(CheckpointError, match=r"unexpected 115 tensors: backbone\.\* 115"):
        load_weights(tiny(), path)


def test_a_refused_load_changes_nothing(tmp_path: Path) -> None:
    target = tiny()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    state = dict(tiny(seed=1).state_dict())
    state.pop("fc.bias")
    with pytest.raises(CheckpointError, match=r"missing 1 tensors: fc\.\* 1"):
        load_weights(target, write(tmp_path / "w.pt", state))
    assert same(target.state_dict(), before)


def test_not_finite_weights_are_named(tmp_path: Path) -> None:
    state = dict(tiny().state_dict())
    state["layer2.0.bn1.running_var"] = torch.full_like(state["layer2.0.bn1.running_var"], float("nan"))
    with pytest.raises(CheckpointError, match=r"layer2\.0\.bn1\.running_var has 4 values that are NaN or infinite"):
        load_weights(tiny(), write(tmp_path / "w.pt", state))


def test_integers_where_floats_are_due(tmp_path: Path) -> None:
    state = {**tiny().state_dict(), "fc.bias": torch.zeros(8, dtype=torch.int64)}
    with pytest.raises(CheckpointError, match=r"fc\.bias is torch\.int64, expected torch\.float32"):
        load_weights(tiny(), write(tmp_path / "w.pt", state))


@pytest.mark.parametrize(("source", "target"), [(a, b) for a in KINDS for b in KINDS if a != b])
def test_weights_of_another_family_are_named(source: str, target: str, tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", dict(tiny(source).state_dict()))
    with pytest.raises(CheckpointError, match=rf"holds {source}.*, which does not fit {target}.*missing \d+ tensors"):
        load_weights(tiny(target), path)


def test_weights_of_another_depth_are_named(tmp_path: Path) -> None:
    options = {"width_multiplier": 0.0625, "layers": (2, 2, 2, 2)}
    path = write(tmp_path / "w.pt", dict(tiny(**options).state_dict()))
    message = r"holds iresnet18 of width 4 \(187 tensors\), which does not fit iresnet34 of width 4 \(331 tensors\)"
    with pytest.raises(CheckpointError, match=message):
        load_weights(tiny("iresnet34", width_multiplier=0.0625), path)


def test_weights_of_the_917_key_family_are_named(tmp_path: Path) -> None:
    state = {"input_layer.0.weight": torch.zeros(64, 3, 3, 3)}
    state |= {f"body.{index}.res_layer.0.weight": torch.zeros(2) for index in range(49)}
    path = write(tmp_path / "w.pt", {f"net.{key}": tensor for key, tensor in state.items()})
    message = "holds an IR network of the `input_layer.`/`body.` family with 49 blocks"
    with pytest.raises(CheckpointError, match=message):
        load_weights(tiny(), path)


def test_a_training_checkpoint_is_unwrapped(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {"epoch": 3, "state_dict": dict(tiny().state_dict())})
    target = tiny(seed=1)
    assert load_weights(target, path).num_tensors == 115
    assert same(target.state_dict(), tiny().state_dict())


def test_other_values_among_the_tensors_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {"epoch": 3, **tiny().state_dict()})
    with pytest.raises(CheckpointError, match="'epoch' is not a tensor but int; pass a file that holds the state dict"):
        load_weights(tiny(), path)


def test_the_safetensors_file_beside_it_holds_the_same(saved: Path) -> None:
    backbone, beside = tiny(), saved.with_suffix(".safetensors")
    with safe_open(beside, framework="pt") as file:
        metadata = file.metadata()
        assert same({name: file.get_tensor(name) for name in file.keys()}, backbone.state_dict())  # noqa: SIM118
    assert (metadata["format"], metadata["format_version"]) == ("gkd.student", "1")
    assert json.loads(metadata["architecture"]) == backbone.architecture
    assert json.loads(metadata["architecture"])["name"] == "iresnet"
    assert json.loads(metadata["input"]) == torch.load(saved, weights_only=True)["input"]
    assert json.loads(metadata["extra"]) == EXTRA
    assert beside.stat().st_mode == saved.stat().st_mode
    loaded, spec, extra = load_student(beside)
    assert same(loaded.state_dict(), backbone.state_dict())
    assert (loaded.architecture, spec, extra) == (backbone.architecture, SPEC, EXTRA)
    target = tiny(seed=1)
    report = load_weights(target, beside)
    assert same(target.state_dict(), backbone.state_dict())
    assert (report.path, report.input_spec, report.num_tensors) == (beside, SPEC, 115)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_plain_safetensors_file(name: str, metadata: dict[str, str] | None, prefix: str, tmp_path: Path) -> None:
    source, target = tiny(name), tiny(name, seed=1)
    state = {prefix + key: tensor.contiguous() for key, tensor in source.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors", metadata=metadata)
    report = load_weights(target, tmp_path / "w.safetensors")
    assert same(target.state_dict(), source.state_dict())
    assert (report.stripped_prefix, report.is_input_certain) == (prefix, False)
    assert report.sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    with pytest.raises(CheckpointError, match=r"w\.safetensors is not a gkd\.student file"):
        load_student(tmp_path / "w.safetensors")


HEADER = b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not weights\n",
        b"<!DOCTYPE html><html></html>",
        b"\xff" * 64,
        len(HEADER).to_bytes(8, "little") + HEADER + b"0000",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"more",
        pickle.dumps({"a": 1}),
    ],
)
def test_files_that_are_no_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    for load in (load_student, lambda path: load_weights(tiny(), path)):
        with pytest.raises(CheckpointError, match=r"w\.safetensors: damaged, truncated or not a \.safetensors file"):
            load(path)


def test_missing_truncated_and_folder_safetensors(saved: Path, tmp_path: Path) -> None:
    path = saved.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged, truncated"):
        load_student(path)
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, reason in (("none", "no such file"), ("folder", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: .*{reason}"):
            load_weights(tiny(), tmp_path / f"{name}.safetensors")
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.truncate(17 << 30)
    with pytest.raises(CheckpointError, match=r"bytes is more than the .* allowed for weights"):
        load_student(tmp_path / "huge.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": '{"name": "onnx:/etc/passwd"}'}, "architecture names another file"),
        ({"architecture": '{"name": "iresnet", "layers": [1, 1, 1, 2], "input_size": [32, 16]}'}, "which does not fit"),
        ({"architecture": "[" * 100_000}, "its metadata `architecture` is not valid JSON"),
        ({"extra": '{"a": NaN}'}, r"extra\.a must be finite"),
        ({"format_version": "2"}, "version 2, this gkd reads version 1"),
        ({"more": "1"}, "fields missing or unknown: more"),
        ({"input": "{}"}, "input must hold color"),
    ],
)
def test_hostile_metadata_of_a_safetensors_file(change: dict[str, str], message: str, saved: Path) -> None:
    path = saved.with_suffix(".safetensors")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, path, metadata={**metadata, **change})
    with pytest.raises(CheckpointError, match=message):
        load_student(path)


@pytest.mark.parametrize("failing", [".pt", ".safetensors"])
def test_a_full_disk_leaves_both_old_files(saved: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def full_disk(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, *arguments, **options)

    beside = saved.with_suffix(".safetensors")
    before = saved.read_bytes(), beside.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full_disk)
        with pytest.raises(CheckpointError, match=r"student\.pt: cannot be written: .*No space left.*has space"):
            save_student(saved, tiny(seed=1), SPEC)
    assert (saved.read_bytes(), beside.read_bytes()) == before
    assert sorted(saved.parent.iterdir()) == [saved, beside]


def test_every_type_and_shape_is_read_back_by_the_library(tmp_path: Path) -> None:
    base = torch.tensor([[0.0, 1.0, -2.5], [3.0, 4.0, 5.0]])
    tensors = {f"{dtype}": base.to(dtype) for dtype in contents.DTYPES}
    tensors |= {"scalar": torch.tensor(7), "empty": torch.empty(0, 5), 'é\n"': torch.ones(1, dtype=torch.bool)}
    safetensors_file.write_both(tmp_path / "w.pt", {"format": "x", "a": ["é", 1]}, tensors, {})
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert same({name: file.get_tensor(name) for name in file.keys()}, tensors)  # noqa: SIM118
        assert json.loads(file.metadata()["a"]) == ["é", 1]
    header_bytes = int.from_bytes((tmp_path / "w.safetensors").read_bytes()[:8], "little")
    assert header_bytes % 8 == 0


def test_the_safetensors_file_is_not_written_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"give the name of the \.pt file"):
        save_student(tmp_path / "student.safetensors", tiny(), SPEC)


def test_a_copy_of_the_state_is_written_in_place_of_the_live_one(tmp_path: Path) -> None:
    backbone, other = tiny(), tiny(seed=1)
    save_student(tmp_path / "student.pt", backbone, SPEC, state=other.state_dict())
    assert same(load_student(tmp_path / "student.pt")[0].state_dict(), other.state_dict())
    assert same(backbone.state_dict(), tiny().state_dict())
    state = dict(other.state_dict())
    state.pop("fc.bias")
    with pytest.raises(CheckpointError, match=r"missing 1 tensors: fc\.\* 1"):
        save_student(tmp_path / "student.pt", backbone, SPEC, state=state)
