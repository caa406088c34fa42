"""Checkpoints that are damaged, hostile or of another network: one clear refusal each, and nothing is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from gkd.core.errors import CheckpointError
from gkd.train.checkpoint import Checkpoints
from gkd.train.checkpoint_marker import Marker, describe_file, read_marker, write_marker
from gkd.train.checkpoint_tensors import _LoadPlanner

WANTED = {"weight": torch.zeros(4, 3), "bias": torch.zeros(4)}


class Bomb:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tensors = {"weight": torch.arange(12.0).reshape(4, 3), "bias": torch.arange(4.0)}
    return Checkpoints(tmp_path).save(5, tensors, {"epoch": 1})


def load(path: Path, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
    return Checkpoints(path.parent).load(path, {n: t.clone() for n, t in (tensors or WANTED).items()})


def seal(path: Path) -> None:
    """Give a changed checkpoint a marker that fits, as its attacker would."""
    marker = read_marker(path)
    write_marker(path, Marker(marker.step, marker.score, {name: describe_file(path / name) for name in marker.files}))


def change_metadata(path: Path, change: Callable[[Any], Any]) -> None:
    file = path / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    change(metadata)
    file.write_bytes(pickle.dumps(metadata))
    seal(path)


def test_the_unchanged_checkpoint_loads(saved: Path) -> None:
    change_metadata(saved, lambda _: None)
    assert load(saved) == {"epoch": 1}


def test_a_missing_folder_a_file_and_another_folder(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*nowhere: there is no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"__0_0.distcp is a file; a checkpoint is a folder"):
        load(saved / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"is not a whole checkpoint: it has no complete.json"):
        load(tmp_path)


@pytest.mark.parametrize("name", [".metadata", "values.json", "__0_0.distcp"])
def test_a_damaged_file_is_named(saved: Path, name: str) -> None:
    path = saved / name
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: {len(data) - 1} bytes, not {len(data)}"):
        load(saved)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: its SHA-256 is not the stored one"):
        load(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing or unreadable"):
        load(saved)
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=rf"{name} is not a regular file"):
        load(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[1", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'format'"),
        ('{"format": 2}', "format 2, this version reads format 1"),
        ('{"format": 1, "step": "x", "score": null, "files": {}}', "step or score is not a number"),
        ('{"format": 1, "step": 1, "score": NaN, "files": {}}', "NaN is not a JSON number"),
        ('{"format": 1, "step": 1, "score": null, "files": {}}', "does not list .metadata"),
        ('{"format": 1, "step": 1, "score": null, "files": []}', "AttributeError"),
        ('{"format": 1, "step": 1, "score": null, "files": {"../a": {"size": 1, "sha256": ""}}}', "not the name of a"),
        ('{"format": 1, "step": 1, "score": null, "files": {"a": {"size": -1, "sha256": ""}}}', "bad size or digest"),
    ],
)
def test_a_malformed_marker_is_refused(saved: Path, text: str, message: str) -> None:
    (saved / "complete.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"complete.json is damaged.*{message}"):
        load(saved)


def test_a_marker_that_is_a_link_or_huge_is_refused(saved: Path) -> None:
    marker = saved / "complete.json"
    marker.unlink()
    marker.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(saved)
    marker.unlink()
    with marker.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"cannot read .*complete.json.*more than"):
        load(saved)


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": Infinity}'])
def test_malformed_values_are_refused(saved: Path, text: str) -> None:
    (saved / "values.json").write_text(text)
    seal(saved)
    with pytest.raises(CheckpointError, match=r"values.json is damaged: not"):
        load(saved)


def test_code_in_the_metadata_is_named_and_not_run(saved: Path, tmp_path: Path) -> None:
    (saved / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    seal(saved)
    with pytest.raises(CheckpointError, match=r"metadata.*(posix|os).system.*another checkpoint"):
        load(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x04]\x94.", b"\x80\x04N.", pickle.dumps({"a": 1})])
def test_metadata_that_is_no_metadata_is_refused(saved: Path, data: bytes) -> None:
    (saved / ".metadata").write_bytes(data)
    seal(saved)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        load(saved)


def test_a_class_named_by_the_metadata_is_not_changed(saved: Path) -> None:
    # GLOBAL Metadata; BUILD (None, {"version": "changed"}) would set an attribute of DCP's own class.
    module = b"torch.distributed.checkpoint.metadata"
    (saved / ".metadata").write_bytes(
        b"c" + module + b"\nMetadata\n(N}Vversion\nVchanged\nsTb.".replace(b"sTb", b"stb")
    )
    seal(saved)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        load(saved)
    from torch.distributed.checkpoint.metadata import Metadata

    assert Metadata.version is None


def only_info(metadata: Any) -> Any:
    return metadata.storage_data[MetadataIndex("weight", torch.Size([0, 0]))]


def chunk(metadata: Any) -> Any:
    return metadata.state_dict_metadata["weight"].chunks[0]


def replace_by_bytes(metadata: Any) -> None:
    metadata.state_dict_metadata["weight"] = BytesStorageMetadata()


HOSTILE_CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "pickled object": (replace_by_bytes, "`weight` is a pickled object; only tensors are read"),
    "parent folder": (lambda m: setattr(only_info(m), "relative_path", "../secret"), "'../secret', which is no file"),
    "absolute path": (lambda m: setattr(only_info(m), "relative_path", "/etc/passwd"), "'/etc/passwd', which is no"),
    "unlisted file": (lambda m: setattr(only_info(m), "relative_path", "complete.json"), "'complete.json', which is"),
    "negative offset": (lambda m: setattr(only_info(m), "offset", -1), "where a shape is due"),
    "beyond the end": (lambda m: setattr(only_info(m), "length", 1 << 40), "that are not there"),
    "transformed": (lambda m: setattr(only_info(m), "transform_descriptors", ["zstd"]), "transformed ones"),
    "no bytes": (lambda m: m.storage_data.clear(), "has no bytes for its chunk"),
    "no chunks": (lambda m: m.state_dict_metadata["weight"].chunks.clear(), r"do not cover its shape \(4, 3\)"),
    "small chunk": (lambda m: setattr(chunk(m), "sizes", torch.Size([4, 2])), "do not cover"),
    "large chunk": (lambda m: setattr(chunk(m), "sizes", torch.Size([5, 3])), "a chunk that lies outside it"),
    "other rank": (lambda m: setattr(chunk(m), "sizes", torch.Size([12])), "a chunk that lies outside it"),
    "overlap": (
        lambda m: m.state_dict_metadata["weight"].chunks.append(chunk(m)),
        "do not cover",
    ),
    "huge shape": (
        lambda m: setattr(m.state_dict_metadata["weight"], "size", torch.Size([1 << 40, 3])),
        "do not cover",
    ),
    "no fields": (lambda m: m.__dict__.clear(), "damaged: KeyError"),
    "no storage": (lambda m: setattr(m, "storage_data", None), "where a dict is due"),
    "swapped": (lambda m: m.state_dict_metadata.update(weight=chunk(m)), "where a TensorStorageMetadata is due"),
}


@pytest.mark.parametrize("name", HOSTILE_CHANGES)
def test_hostile_metadata_is_refused(saved: Path, name: str) -> None:
    change, message = HOSTILE_CHANGES[name]
    change_metadata(saved, change)
    with pytest.raises(CheckpointError, match=rf"\.metadata is (refused|damaged).*{message}|{message}"):
        load(saved)


def put_bytes(path: Path, data: bytes) -> None:
    """Make `weight` of a checkpoint consist of these bytes."""
    file = path / "__0_0.distcp"
    start = file.stat().st_size
    with file.open("ab") as stream:
        stream.write(data)

    def point(metadata: Any) -> None:
        info = only_info(metadata)
        info.offset, info.length = start, len(data)

    change_metadata(path, point)


def torch_bytes(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def repack(data: bytes, compression: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w", compression) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_bytes_of_another_tensor_are_refused(saved: Path) -> None:
    put_bytes(saved, torch_bytes(torch.ones(4, 3)))
    assert load(saved) == {"epoch": 1}
    for value in (torch.ones(3, 4), torch.ones(4, 3).double(), [1.0], torch.ones(4, 3).to_sparse()):
        put_bytes(saved, torch_bytes(value))
        with pytest.raises(CheckpointError, match=r"`weight` in .* is not the torch.float32 tensor of shape"):
            load(saved)


def test_code_compression_and_rubbish_in_the_tensor_bytes_are_refused(saved: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "ran"
    packed = repack(torch_bytes(torch.ones(4, 3)), zipfile.ZIP_DEFLATED)
    for data, reason in (
        (torch_bytes(Bomb(bomb)), "system|[Ww]eights"),
        (pickle.dumps(Bomb(bomb)), "not a zip"),
        (packed, "compressed records"),
        (b"rubbish" * 50, "not a zip"),
    ):
        put_bytes(saved, data)
        with pytest.raises(CheckpointError, match=f"`weight` in .*damaged or unsafe and was refused.*({reason})"):
            load(saved)
    assert not bomb.exists()


def test_a_tensor_cannot_claim_far_more_bytes_than_it_has(saved: Path) -> None:
    put_bytes(saved, bytes(2 << 20))
    with pytest.raises(CheckpointError, match="`weight` claims 2097152 bytes for a chunk of shape"):
        load(saved)


def test_the_planner_never_unpickles_bytes() -> None:
    item: Any = type("Item", (), {"dest_index": MetadataIndex("a")})
    with pytest.raises(CheckpointError, match="`a` is a pickled object"):
        _LoadPlanner().load_bytes(item, io.BytesIO(b""))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"weight": WANTED["weight"]}, r"1 unexpected \(bias\)"),
        (WANTED | {"a": torch.ones(1), "b": torch.ones(1)}, r"2 missing \(a, b\)"),
        (WANTED | {n: torch.ones(1) for n in "abcde"}, r"5 missing \(a, b, c, …\)"),
        (WANTED | {"bias": torch.ones(5)}, r"1 of another shape \(bias: \(4,\) stored, \(5,\) wanted\)"),
        (WANTED | {"bias": torch.ones(4).half()}, r"of another dtype \(bias: torch.float32 stored, torch.float16"),
    ],
)
def test_another_network_is_named_and_left_alone(saved: Path, wanted: dict[str, Tensor], message: str) -> None:
    before = {name: tensor.clone() for name, tensor in wanted.items()}
    with pytest.raises(CheckpointError, match=rf"another network or optimiser: .*{message}.*; resume with"):
        Checkpoints(saved.parent).load(saved, wanted)
    assert all(torch.equal(before[name], wanted[name]) for name in wanted)


def test_the_marker_holds_no_path_of_this_machine(saved: Path) -> None:
    for name in ("complete.json", ".metadata", "values.json"):
        assert str(saved.parent).encode() not in (saved / name).read_bytes()
    assert json.loads((saved / "complete.json").read_text())["step"] == 5
