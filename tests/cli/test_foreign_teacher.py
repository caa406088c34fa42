"""A teacher that is not ours, met by a new user: from an ONNX file and class centres to a distilled student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from gkd import build_teacher
from gkd.cli.prepare import main as prepare
from gkd.cli.train import main
from gkd.core.config import load_config
from gkd.core.errors import ConfigError
from gkd.data import PairSet
from gkd.heads import SoftmaxHead
from gkd.inference import check_teacher
from gkd.models import create_backbone, load_head, load_student
from gkd.schema import TrainRun
from gkd.train.metrics import read_metrics
from tests.models.onnx_nets import face_net
from tests.train.tiny_run import config, write_data

INPUT = {"color": "rgb", "mean": [127.5] * 3, "std": [127.5] * 3}
GKD = [{"loss": {"name": "gkd", "grouping": {"name": "top_k", "k": 3}}, "warmup_epochs": 0}]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a network of 8 numbers."""
    folder = tmp_path_factory.mktemp("foreign")
    write_data(folder)
    face_net(folder / "net.onnx", batch=1)
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return tmp_path


def foreign(folder: Path, distill: list[dict[str, Any]] | None = None, **teacher: object) -> Path:
    settings: dict[str, object] = {
        "backbone": {"name": f"onnx:{folder / 'net.onnx'}"},
        "input": INPUT,
        "centres": {"folder": str(folder / "centres")},
        "check_pairs": str(folder / "pairs.bin"),
        "min_accuracy": 0.3,
        "min_train_rank1": 0.1,
    }
    settings |= teacher
    return config(
        folder, teacher={key: value for key, value in settings.items() if value is not None}, distill=distill or GKD
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message[message.index("error: ") :]


def test_a_student_learns_from_an_onnx_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign(folder)
    assert main([str(path)]) == 0
    told = capsys.readouterr().err
    assert "embedding 48 images and their mirror images" in told
    assert "training rank-1" in told
    weights, meta = load_head(folder / "centres" / "centres.pt")
    assert tuple(weights.shape) == (6, 8)
    assert len(meta["network"]) == 64
    backbone, _, _ = load_student(folder / "run" / "weights" / "student.pt")
    assert backbone.embedding_dim == 16
    check = json.loads((folder / "centres" / "teacher_check.json").read_text())
    assert check["values"]["train_rank1"] > 0.5
    assert main([str(path), f"run.folder={folder / 'second'}", "run.seed=6"]) == 0
    told = capsys.readouterr().err
    assert "embedding 48 images" not in told
    assert "training rank-1" in told


def test_figures_of_the_teacher_are_kept_for_these_pairs_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = foreign(folder)
    assert prepare(["centres", str(path)]) == 0
    measured: list[int] = []
    measure = check_teacher._measure
    monkeypatch.setattr(check_teacher, "_measure", lambda *args: measured.append(1) or measure(*args))
    assert prepare(["centres", str(path)]) == 0
    assert not measured
    pairs = PairSet.load(folder / "pairs.bin")
    PairSet(pairs.images[4:], pairs.is_same[2:]).save(folder / "pairs.bin")
    assert prepare(["centres", str(path)]) == 0
    assert measured == [1]
    (folder / "centres" / "teacher_check.json").write_text("{")
    assert prepare(["centres", str(path)]) == 0
    assert measured == [1, 1]
    assert "damaged; it is measured anew" in capsys.readouterr().err
    assert prepare(["centres", str(path), "teacher.min_accuracy=1"]) == 2
    assert "the teacher is too weak to learn from" in capsys.readouterr().err


def test_kept_embeddings_teach_as_the_live_network_does(folder: Path) -> None:
    path, small = foreign(folder), "optim.lr=1e-5"  # larger steps make rounding grow from step to step
    assert main([str(path), small]) == 0
    assert main([str(path), small, "teacher.centres.reuse_embeddings=false", f"run.folder={folder / 'live'}"]) == 0
    _, kept = read_metrics(folder / "run" / "metrics.jsonl", "loss/gkd/primary")
    _, live = read_metrics(folder / "live" / "metrics.jsonl", "loss/gkd/primary")
    assert len(kept) == 12
    # float16 rounds a unit vector's entries by 5e-4 of themselves.
    np.testing.assert_allclose(kept, live, rtol=5e-3)
    assert kept != live


def test_all_losses_together_with_embeddings_of_other_lengths(folder: Path) -> None:
    terms = [*GKD, *({"loss": {"name": name}, "warmup_epochs": 0} for name in ("kd", "dkd", "embedding", "rkd"))]
    path = foreign(folder, distill=terms)
    assert main([str(path), "train.epochs=1"]) == 0
    for part in ("gkd/primary", "kd/kl", "dkd/target", "embedding/distance", "rkd/angle"):
        _, values = read_metrics(folder / "run" / "metrics.jsonl", f"loss/{part}")
        assert np.isfinite(values).all()
    student = torch.load(folder / "run" / "weights" / "student.pt", weights_only=True)
    assert not [name for name in student["state_dict"] if "projection" in name]


def test_a_projection_goes_on_where_the_run_does(folder: Path) -> None:
    """Killed after a checkpoint, a run with a trainable term ends as if it had not been."""
    terms = [{"loss": {"name": "embedding"}, "warmup_epochs": 0}]
    path = foreign(folder, distill=terms)
    assert main([str(path), f"run.folder={folder / 'whole'}", "train.save_every=5"]) == 0
    assert main([str(path), "train.save_every=5"]) == 0
    for step in sorted((folder / "run" / "checkpoints").glob("step_*"))[1:]:
        shutil.rmtree(step)
    assert main([str(path), "train.save_every=5"]) == 0
    states = [
        torch.load(folder / run / "weights" / "student.pt", weights_only=True)["state_dict"] for run in ("whole", "run")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_no_logits_are_computed_where_no_loss_looks_at_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = foreign(folder, distill=[{"loss": {"name": "embedding"}, "warmup_epochs": 0}])
    assert prepare(["centres", str(path)]) == 0
    calls: list[int] = []
    cosine = SoftmaxHead.cosine
    monkeypatch.setattr(SoftmaxHead, "cosine", lambda head, rows: calls.append(rows.shape[1]) or cosine(head, rows))
    assert main([str(path), "train.epochs=1"]) == 0
    assert calls == [16] * 6  # the student's alone


def test_plain_weights_of_a_named_network(folder: Path) -> None:
    torch.manual_seed(3)
    settings = {"embedding_dim": 12, "width_multiplier": 0.0625, "input_size": [32, 32]}
    teacher = create_backbone("iresnet18", **settings)
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    path = foreign(folder, backbone={"name": "iresnet18", **settings}, weights=str(folder / "teacher.pth"))
    assert main([str(path), "train.epochs=1", "teacher.min_accuracy=0"]) == 0
    weights, _ = load_head(folder / "centres" / "centres.pt")
    assert tuple(weights.shape) == (6, 12)


def test_weights_of_ours_say_what_they_take(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config(folder)), f"run.folder={folder / 'teacher'}", "train.epochs=1"]) == 0
    network = {"name": "iresnet18", "embedding_dim": 16, "width_multiplier": 0.0625, "input_size": [32, 32]}
    weights = str(folder / "teacher" / "weights" / "student.pt")
    path = foreign(folder, backbone=network, weights=weights, input={**INPUT, "color": "bgr"})
    message = refused(capsys, path)
    assert "teacher.input: bgr, mean 127.5, std 127.5 was given" in message
    assert "takes rgb, mean 127.5, std 127.5 (the file says so); leave teacher.input out" in message
    assert not (folder / "centres").exists()


def test_a_wrong_input_is_found_before_the_embedding(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("the declared input is not what this network was trained with")

    monkeypatch.setattr(build_teacher, "check_input_once", refuse)
    assert "the declared input is not what" in refused(capsys, foreign(folder))
    assert not (folder / "centres").exists()


def test_a_finished_run_with_class_centres_teaches_other_classes(folder: Path) -> None:
    assert main([str(config(folder)), f"run.folder={folder / 'teacher'}"]) == 0
    (folder / "teacher" / "weights" / "head.pt").unlink()
    path = foreign(folder, backbone=None, input=None, run=str(folder / "teacher"))
    assert main([str(path), "train.epochs=1"]) == 0


def test_centres_are_made_without_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign(folder)
    assert prepare(["centres", str(path)]) == 0
    out = capsys.readouterr().out
    assert "class centres of 6 identities: " in out
    assert "label_noise.csv" in out
    assert not (folder / "run").exists()
    assert main([str(path), "--dry-run"]) == 0
    assert "there, 0.0 MB of embeddings of these images" in capsys.readouterr().out
    assert prepare(["centres", str(config(folder, teacher=None, distill=[]))]) == 2
    assert "has neither teacher.cache nor teacher.centres" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(foreign(folder)), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "to be made from 48 images" in out
    assert "frozen, rgb, mean 127.5, std 127.5" in out
    assert not (folder / "centres").exists()


def test_centres_of_other_data_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign(folder)
    assert main([str(path)]) == 0
    (folder / "other").mkdir()
    write_data(folder / "other", images_per_identity=7)
    message = refused(capsys, path, f"data.train.path={folder / 'other' / 'train.rec'}", f"run.folder={folder / 'x'}")
    assert "another network or of other data" in message
    assert "num_images: 48 there, 42 now" in message
    assert "name another folder, or remove this one" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": None}, "teacher.input: missing: say which color, mean and std"),
        ({"centres": None}, "teacher.centres: missing"),
        ({"weights": "x.pth"}, "teacher.weights: an ONNX file holds its weights"),
        ({"backbone": {"name": "iresnet18"}}, "teacher.weights: missing: the file that holds the weights"),
        (
            {"run": "runs/x"},
            "teacher.run: a teacher comes from a finished run (`run`) or from `weights` or `backbone`, and both",
        ),
        (
            {"backbone": None},
            "teacher.run: a teacher comes from a finished run (`run`) or from `weights` or `backbone`, and neither",
        ),
        ({"input": {"color": "rgb"}}, "teacher.input.mean: missing"),
        ({"input": {**INPUT, "std": [0.5, 0.5, 0.5]}}, "pixels are 0..255: multiply mean and std by 255"),
        ({"centres": {"folder": "c", "min_cosine": 1}}, "teacher.centres.min_cosine: expected"),
        ({"centres": None, "margin": "arcface"}, "teacher.margin: goes with `centres`"),
    ],
)
def test_mistakes_in_the_teacher_section(
    folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str
) -> None:
    assert message in refused(capsys, foreign(folder, **change))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
            "truncated, damaged or not an ONNX file",
        ),
        (lambda path: path.write_text("<html>"), "HTML"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: face_net(path, embedding_dim=1), "D from 2 to 16,384, but it has inputs images float"),
    ],
)
def test_a_wrong_onnx_file(folder: Path, capsys: pytest.CaptureFixture[str], write: Any, message: str) -> None:
    write(folder / "net.onnx")
    found = refused(capsys, foreign(folder))
    assert message in found
    assert found.count("\n") == 1


def test_a_teacher_that_takes_images_of_another_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign(folder)
    message = "the teacher takes images of 32x32 and the student of 16x16; both look at the same images"
    assert main([str(path), "backbone.input_size=[16, 16]", "--dry-run"]) == 2
    assert message in capsys.readouterr().out


def test_an_embedding_size_that_does_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign(folder, backbone={"name": f"onnx:{folder / 'net.onnx'}", "embedding_dim": 512})
    assert "embedding_dim 512 was given, but" in refused(capsys, path)


def test_a_foreign_network_is_no_student(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(folder, backbone={"name": f"onnx:{folder / 'net.onnx'}"})
    assert "backbone.name: unknown name `onnx:" in refused(capsys, path)


def test_the_resolved_config_names_the_teacher_and_loads_back(folder: Path) -> None:
    path = foreign(folder)
    assert main([str(path), "train.epochs=1"]) == 0
    resolved = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert resolved["teacher"]["backbone"]["name"].startswith("onnx:")
    assert load_config(folder / "run" / "config.yaml", TrainRun) == load_config(path, TrainRun, ["train.epochs=1"])
