"""tools/inspect_weights.py: what it says of files of several kinds, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gkd.cli import inspect_weights
from gkd.models import InputSpec, count_macs, create_backbone, num_parameters, save_head, save_student
from tests.models import onnx_nets

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def adaface(tmp_path: Path) -> Path:
    state = create_backbone("ir18", embedding_dim=8, width_multiplier=0.0625, input_size=(64, 64)).state_dict()
    inner = {f"model.{name}": tensor for name, tensor in state.items()}
    path = tmp_path / "ada face.ckpt"
    torch.save({"epoch": 1, "state_dict": {**inner, "head.kernel": torch.randn(8, 1234)}}, path)
    return path


def test_what_is_said_of_a_checkpoint(adaface: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_weights.main([str(adaface)]) == 0
    told = capsys.readouterr().out
    backbone = create_backbone("ir18", embedding_dim=8, width_multiplier=0.0625, input_size=(64, 64))
    lines = [
        str(adaface),
        f"  sha256         {hashlib.sha256(adaface.read_bytes()).hexdigest()}",
        "  source         AdaFace checkpoint",
        f"  parameters     {num_parameters(backbone):,}",
        f"  GMACs          {count_macs(backbone) / 1e9:.3f}",
        "  embedding      8 numbers",
        "  images         64 x 64 pixels",
        "  input          bgr, mean 127.5, std 127.5 (AdaFace networks take BGR from -1 to 1)",
        "  class weights  1,234 classes",
        "  note           head of 1234 classes left out",
        f"  use            tools/eval.py --weights '{adaface}' --data lfw.bin",
    ]
    for line in lines:
        assert line in told.splitlines()
    assert "prefix `model.` stripped" in told


def test_a_guessed_input_must_be_declared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.pt"
    torch.save(create_backbone("iresnet18", width_multiplier=0.0625, input_size=(32, 32)).state_dict(), path)
    assert inspect_weights.main([str(path)]) == 0
    told = capsys.readouterr().out
    assert "a plain file does not say which project it is from; declare it, and check it on faces)" in told
    assert "--data lfw.bin --color rgb --mean 127.5 --std 127.5\n" in told


def test_an_onnx_file_has_costs_but_no_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = onnx_nets.face_net(tmp_path / "net.onnx")
    assert inspect_weights.main([str(path), "--json", str(tmp_path / "out.json")]) == 0
    told = capsys.readouterr().out
    assert "  source         ONNX file\n" in told
    assert "  input          unknown (an ONNX file does not say how it takes its pixels; declare it" in told
    (document,) = json.loads((tmp_path / "out.json").read_text())
    expected = sum(tensor.size for tensor in onnx_nets.weights(8).values())
    assert (document["num_parameters"], document["input"]) == (expected, None)
    assert document["macs"] > 0


def test_class_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_head(tmp_path / "head.pt", torch.randn(5, 8), {})
    assert inspect_weights.main([str(tmp_path / "head.pt"), str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.count("  class weights  5 classes of a head file of this project\n  embedding      8 numbers\n") == 2


def test_several_files_and_one_refused(adaface: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = create_backbone("iresnet18", width_multiplier=0.0625, input_size=(32, 32))
    save_student(tmp_path / "student.pt", backbone, InputSpec(color="bgr"))
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00atR.")
    missing = tmp_path / "none.pt"
    out = tmp_path / "out.json"
    files = [tmp_path / "student.safetensors", bad, missing, adaface]
    assert inspect_weights.main([*map(str, files), "--json", str(out)]) == 2
    told = capsys.readouterr()
    assert told.err == (
        f"error: {bad}: refused, since loading it would run `os.system`; nothing was run; ask its author for a file of "
        f"plain tensors (a state_dict)\nerror: {missing}: no such file\n"
    )
    student, refused, absent, foreign = json.loads(out.read_text())
    assert student["source"] == "student file of this project"
    assert student["input"] == {"color": "bgr", "mean": [127.5] * 3, "std": [127.5] * 3}
    assert student["is_input_certain"] is True
    assert student["architecture"]["name"] == "iresnet18"
    assert (refused["path"], "os.system" in refused["error"]) == (str(bad), True)
    assert absent == {"path": str(missing), "error": f"{missing}: no such file"}
    assert (foreign["num_classes"], foreign["stripped_prefix"]) == (1234, "model.")
    assert str(bad) not in told.out


def test_the_tool_itself(adaface: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "inspect_weights.py"), str(adaface)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "AdaFace checkpoint" in result.stdout


@pytest.mark.real
def test_the_pretrained_network(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_weights.main([str(real_data / "models" / "mobilefacenet128.pt")]) == 0
    told = capsys.readouterr().out
    assert "  source         foamliu MobileFaceNet\n" in told
    assert "  parameters     999,936\n" in told
