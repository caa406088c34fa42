"""Files of torch.save from anyone: objects of frameworks are left unread, every other name is refused, nothing runs."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gkd.core.errors import CheckpointError
from gkd.models import load_class_weights, load_network, torch_archive
from gkd.models.torch_archive import read_torch_archive

WEIGHT = torch.arange(6.0).reshape(2, 3)


def zipped(path: Path, data: bytes, **entries: bytes) -> Path:
    """A file of the new kind with this pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path


def framework_class(monkeypatch: pytest.MonkeyPatch, module: str, name: str, base: type = object) -> Any:
    """A class that pickles under the name of a framework's."""
    made = type(name, (base,), {"__module__": module, "__qualname__": name})
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        fake = types.ModuleType(".".join(parts[:end]))
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    vars(sys.modules[module])[name] = made
    return made


@pytest.mark.parametrize("is_zip", [True, False])
def test_objects_of_frameworks_are_left_unread(is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        callback = framework_class(patched, "pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        attributes = framework_class(patched, "pytorch_lightning.utilities.parsing", "AttributeDict", dict)
        options = framework_class(patched, "omegaconf.dictconfig", "DictConfig")
        hyper = attributes(lr=0.1)
        hyper["arch"] = "ir_50"
        chosen = options()
        chosen._content = {"a": 1}
        content = {
            "state_dict": OrderedDict(w=WEIGHT),
            "callbacks": {callback: {"best_model_path": "x"}},
            "hyper_parameters": hyper,
            "config": chosen,
            "namespace": __import__("argparse").Namespace(lr=0.1, milestones=[1, 2]),
            "score": np.float64(0.5),
            "array": np.arange(3),
            "path": Path("/tmp/x"),
            "counts": defaultdict(list, {"a": [1]}),
            "recent": deque([1, 2]),
        }
        torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=is_zip)
    before = set(torch.serialization.get_safe_globals())
    archive = read_torch_archive(tmp_path / "w.ckpt")
    assert torch.equal(archive.content["state_dict"]["w"], WEIGHT)
    assert set(archive.unread) >= {
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "omegaconf.dictconfig.DictConfig",
        "argparse.Namespace",
        "collections.defaultdict",
        "collections.deque",
    }
    assert any(name.startswith("numpy") for name in archive.unread)
    assert not any(name.startswith(("pytorch_lightning", "omegaconf")) for name in sys.modules)
    assert type(archive.content["namespace"]) is not __import__("argparse").Namespace
    assert not vars(archive.content["namespace"])
    assert set(torch.serialization.get_safe_globals()) == before


def test_plain_tensors_leave_nothing_unread(tmp_path: Path) -> None:
    torch.save({"w": WEIGHT, "n": 3}, tmp_path / "w.pt")
    archive = read_torch_archive(tmp_path / "w.pt")
    assert archive.unread == ()
    assert archive.content["n"] == 3


# Each calls something in an ordinary unpickler.
GADGETS = {
    "os.system": b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00MARKtR.",
    "posix.system": b"\x80\x02cposix\nsystem\n(X\x04\x00\x00\x00MARKtR.",
    "builtins.eval": b"\x80\x02c__builtin__\neval\n(X\x04\x00\x00\x00MARKtR.",
    "builtins.getattr": b"\x80\x02c__builtin__\ngetattr\n(c__builtin__\nint\nX\x04\x00\x00\x00MARKtR.",
    "builtins.exec": b"\x80\x02cbuiltins\nexec\n(X\x04\x00\x00\x00MARKtR.",
    "subprocess.Popen": b"\x80\x02(S'MARK'\nisubprocess\nPopen\n.",
    "os.mkdir": b"\x80\x02(cos\nmkdir\nS'MARK'\no.",
    "torch.hub.load": b"\x80\x02ctorch.hub\nload\n(X\x04\x00\x00\x00MARKtR.",
    "torch.serialization.load": b"\x80\x02ctorch.serialization\nload\n(X\x04\x00\x00\x00MARKtR.",
    "torch._utils._import_dotted_name": b"\x80\x02ctorch._utils\n_import_dotted_name\n(X\x04\x00\x00\x00MARKtR.",
    "torch.storage._load_from_bytes": b"\x80\x02ctorch.storage\n_load_from_bytes\n(C\x04MARKtR.",
    "torch.nn.modules.linear.Linear": b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.",
    "copyreg._reconstructor": b"\x80\x02ccopy_reg\n_reconstructor\n(X\x04\x00\x00\x00MARKtR.",
    "nt.system": b"\x80\x04\x8c\x02nt\x8c\x06system\x93\x8c\x04MARK\x85R.",
    "importlib.import_module": pickletools.optimize(
        b"\x80\x04\x8c\timportlib\x8c\rimport_module\x93\x8c\x04MARK\x85R."
    ),
}


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
@pytest.mark.parametrize("name", GADGETS)
def test_every_other_name_is_refused_and_named(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = GADGETS[name]
    path = tmp_path / "w.pt"
    if kind == "zip":
        zipped(path, data)
    else:
        numbers = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True})
        start = b"".join(pickle.dumps(number, 2) for number in numbers) if kind == "old" else b""
        path.write_bytes(start + data)
    with pytest.raises(CheckpointError, match=rf"w\.pt: refused, since loading it would run `{name}`; nothing was run"):
        read_torch_archive(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_dotted_gadget_under_a_framework_is_never_looked_up(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "w.pt", b"\x80\x02cpytorch_lightning.os\nsystem\n(X\x04\x00\x00\x00trueX\x01\x00\x00\x00atR."
    )
    archive = read_torch_archive(path)
    assert archive.unread == ("pytorch_lightning.os.system",)
    assert type(archive.content).__module__ == "pytorch_lightning.os"
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cargparse\nNamespace\n}X\x01\x00\x00\x00aK\x01sb.",  # BUILD on the placeholder itself
        b"\x80\x02cargparse\nNamespace\n)\x81X\x01\x00\x00\x00aK\x01s.",  # items on what is no dict
        b"\x80\x02cargparse\nNamespace\n)\x81K\x01a.",  # appending to what is no list
        b"\x80\x02cargparse\nNamespace\n)RX\x01\x00\x00\x00a\x85R.",  # calling the object
    ],
)
def test_a_placeholder_takes_nothing_else(data: bytes, tmp_path: Path) -> None:
    before = vars(torch_archive._Unread).copy()
    with pytest.raises(CheckpointError, match=r"w\.pt: "):
        read_torch_archive(zipped(tmp_path / "w.pt", data))
    assert vars(torch_archive._Unread) == before


def test_a_placeholder_takes_any_arguments_and_any_state(tmp_path: Path) -> None:
    data = b"\x80\x02cnumpy\ndtype\n(X\x02\x00\x00\x00f8K\x00K\x01tR(K\x03X\x01\x00\x00\x00<NNNtb."
    content = read_torch_archive(zipped(tmp_path / "w.pt", data)).content
    assert type(content).__name__ == "dtype"
    assert not vars(content)


def test_too_many_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_archive, "MAX_INSTRUCTIONS", 100)
    path = zipped(tmp_path / "w.pt", b"\x80\x02" + b"N0" * 200 + b"N.")
    with pytest.raises(CheckpointError, match="has more than 100 pickle instructions"):
        read_torch_archive(path)


def test_size_is_what_a_zip_unpacks_to(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * 10_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"10,000,000 bytes is more than the 1,000,000 bytes allowed"):
        read_torch_archive(path, max_bytes=1_000_000)


def test_a_huge_length_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"abc")
    with pytest.raises(CheckpointError, match=r"w\.pt: "):
        read_torch_archive(path)


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "w.pt", b"\x80\x02N.", **{"constants.pkl": b"\x80\x02).", "code/x.py": b""})
    with pytest.raises(CheckpointError, match="is a TorchScript program, not weights; save its state_dict"):
        read_torch_archive(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", "is an HTML or XML page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a text file, not weights"),
        (b"\x80\x02garbage", "damaged, truncated or not a weights file"),
        (b"PK\x03\x04" + b"\x00" * 60, "damaged or truncated"),
        (b"PK\x05\x06" + b"\x00" * 18, r"w\.pth: "),
        (os.urandom(4096), r"w\.pth: "),
    ],
)
def test_files_that_are_no_weights(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    for read in (read_torch_archive, load_network, load_class_weights):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.99])
def test_truncated_anywhere(is_zip: bool, share: float, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    state = {f"layer{index}.weight": torch.randn(20, 20) for index in range(20)}
    torch.save({"state_dict": state, "epoch": 3}, buffer, _use_new_zipfile_serialization=is_zip)
    whole = buffer.getvalue()
    path = tmp_path / "w.pt"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"w\.pt: damaged"):
        read_torch_archive(path)


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "none", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is not a"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            read_torch_archive(path)


def test_a_zip_behind_an_old_file_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = zipped(tmp_path / "w.pt", b"\x80\x02N.")
    path.write_bytes(GADGETS["os.mkdir"] + path.read_bytes())
    with pytest.raises(CheckpointError, match=r"would run `os\.mkdir`"):
        read_torch_archive(path)
    assert list(tmp_path.iterdir()) == [path]
