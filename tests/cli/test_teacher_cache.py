"""A teacher with class weights of its own whose embeddings are computed once, as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gkd.cli.prepare import main as prepare
from gkd.cli.train import main
from gkd.data import PairSet
from gkd.inference.teacher import Teacher
from gkd.models import load_head, load_student
from gkd.train.metrics import read_metrics
from tests.train.tiny_run import config, finish, train, write_data

GKD = [{"loss": {"name": "gkd", "grouping": {"name": "top_k", "k": 3}}, "warmup_epochs": 0}]
SMALL = "optim.lr=1e-5"  # larger steps make rounding grow from step to step


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a finished run."""
    folder = tmp_path_factory.mktemp("cache")
    write_data(folder)
    assert main([str(config(folder)), f"run.folder={folder / 'teacher'}"]) == 0
    return folder


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    return tmp_path


def distilled(folder: Path, augment: list[str] | None = None, **teacher: object) -> Path:
    settings = {
        "run": str(folder / "teacher"),
        "cache": {"folder": str(folder / "cache")},
        "check_pairs": str(folder / "pairs.bin"),
        "min_accuracy": 0.3,
        "min_train_rank1": 0.1,
    }
    settings |= teacher
    sections = {} if augment is None else {"data": {"augment": augment}}
    return config(
        folder, teacher={key: value for key, value in settings.items() if value is not None}, distill=GKD, **sections
    )


def primary(run: Path) -> list[float]:
    return read_metrics(run / "metrics.jsonl", "loss/gkd/primary")[1]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message[message.index("error: ") :]


def test_the_same_student_comes_of_a_cached_and_of_a_live_teacher(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(distilled(folder)), SMALL]) == 0
    networks: list[nn.Module] = []
    release = Teacher.release_backbone
    monkeypatch.setattr(Teacher, "release_backbone", lambda teacher: release(teacher) or networks.append(teacher))
    assert main([str(distilled(folder)), SMALL, f"run.folder={folder / 'again'}"]) == 0
    assert not any(networks[0].backbone.parameters())  # type: ignore[union-attr]
    assert main([str(distilled(folder)), SMALL, "teacher.cache=null", f"run.folder={folder / 'live'}"]) == 0
    kept, live = primary(folder / "run"), primary(folder / "live")
    assert kept == primary(folder / "again")
    assert len(kept) == 12
    # float16 rounds a unit vector's entries by 5e-4 of themselves.
    np.testing.assert_allclose(kept, live, rtol=5e-3)
    assert kept != live


def test_the_run_folder_keeps_the_model_card(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(distilled(folder))]) == 0
    told = capsys.readouterr().err
    card = json.loads((folder / "run" / "teacher_card.json").read_text())
    assert "teacher model card" in told
    assert card["source"] == f"run {folder / 'teacher'}"
    assert card["family"].startswith("iresnet18 of width 4")
    assert card["sha256"] in told
    assert card["input"] == "rgb, mean 127.5, std 127.5"
    assert card["class_weights"] == str(folder / "teacher" / "weights" / "head.pt")
    assert card["train_rank1"] >= 0.1
    assert card["accuracy"] >= 0.3
    assert card["execution"].startswith("cached: ")


def test_it_is_made_ahead_and_then_only_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = distilled(folder)
    assert main([str(path), "--dry-run"]) == 0
    assert "to be made from 48 images" in capsys.readouterr().out
    assert prepare(["cache", str(path)]) == 0
    told = capsys.readouterr()
    assert f"embeddings of 48 images and their mirror images: {folder / 'cache'}" in told.out
    assert "teacher model card" in told.err
    assert "label noise" not in told.out
    assert main([str(path), "--dry-run"]) == 0
    assert "there, " in capsys.readouterr().out
    (folder / "cache" / "done.u8").write_bytes(b"\0")
    assert main([str(path), "--dry-run"]) == 0
    assert "begun, 0 of 48 images done" in capsys.readouterr().out
    (folder / "cache" / "done.u8").write_bytes(b"\1")
    before = {file.name: file.read_bytes() for file in (folder / "cache").iterdir()}
    assert main([str(path)]) == 0
    assert before == {file.name: file.read_bytes() for file in (folder / "cache").iterdir()}


def test_a_weak_teacher_is_refused_before_anything_is_embedded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = PairSet.load(folder / "pairs.bin")
    PairSet(pairs.images, ~pairs.is_same).save(folder / "wrong.bin")  # whoever knows faces fails on these
    weak = distilled(folder, min_accuracy=0.9, check_pairs=str(folder / "wrong.bin"))
    assert "the teacher is too weak to learn from" in refused(capsys, weak)
    assert not (folder / "cache" / "store.json").exists()
    assert main([str(distilled(folder))]) == 0


def test_two_ranks_share_it(folder: Path) -> None:
    path = distilled(folder)
    finish(train(path, SMALL, num_ranks=2))
    made = (folder / "cache" / "embeddings.f16").read_bytes()
    shutil.rmtree(folder / "cache")
    assert main([str(path), SMALL, f"run.folder={folder / 'one'}"]) == 0
    assert made == (folder / "cache" / "embeddings.f16").read_bytes()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("teacher.cache.dtype=bfloat16", "dtype: float16 there, bfloat16 now"),
        ("teacher.precision=bf16", "precision: fp32 there, bf16 now"),
    ],
)
def test_another_origin_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], change: str, told: str) -> None:
    path = distilled(folder)
    assert prepare(["cache", str(path)]) == 0
    assert told in refused(capsys, path, change)
    assert main([str(path), change, "--dry-run"]) == 2
    assert told in capsys.readouterr().out


def test_of_other_weights_it_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = distilled(folder)
    assert prepare(["cache", str(path)]) == 0
    assert main([str(config(folder)), f"run.folder={folder / 'teacher2'}", "run.seed=6"]) == 0
    message = refused(capsys, distilled(folder), f"teacher.run={folder / 'teacher2'}")
    assert "network: " in message
    assert "name another folder, or remove this one" in message


def test_augmentations_that_it_does_not_know_are_refused_with_the_ways_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = distilled(folder, augment=["flip", "grey", "cutout"])
    message = refused(capsys, path)
    assert "cannot stand for grey, cutout" in message
    assert "teacher.cache=null" in message
    assert "teacher.sees=original" in message
    assert not (folder / "cache").exists()
    assert main([str(path), "--dry-run"]) == 2
    assert "cannot stand for grey, cutout" in capsys.readouterr().out
    assert main([str(path), "teacher.sees=original", "train.epochs=1"]) == 0
    assert main([str(path), "teacher.cache=null", "train.epochs=1", f"run.folder={folder / 'live'}"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centres": {"folder": "c"}}, "teacher.cache: `centres` keeps the embeddings in its own folder"),
        ({"compile": True}, "teacher.compile: is for a teacher that runs on every batch"),
        ({"batch_size": 8}, "teacher.batch_size: is for a teacher that runs on every batch"),
        ({"cache": None, "sees": "original"}, "teacher.sees: a live teacher sees what the student sees"),
        ({"class_weights": "head.pt"}, "teacher.class_weights: goes with `weights` or `backbone`"),
        ({"run": None, "weights": "a.pth"}, "teacher.centres: missing: class weights come from `class_weights`"),
        ({"cache": {"folder": "c", "dtype": "float8"}}, "teacher.cache.dtype: "),
    ],
)
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], message: str) -> None:
    assert message in refused(capsys, distilled(folder, **change))


def test_a_weight_file_teaches_with_its_own_class_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training checkpoint of arcface_torch on two processes: backbone and class weights from what they left."""
    backbone, _, _ = load_student(folder / "teacher" / "weights" / "student.pt")
    weights, _ = load_head(folder / "teacher" / "weights" / "head.pt")
    for rank, rows in enumerate(weights.split(3)):
        content = {"state_dict_backbone": backbone.state_dict(), "state_dict_softmax_fc": {"weight": rows.clone()}}
        torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")
    foreign = {"run": None, "weights": str(folder / "checkpoint_gpu_0.pt")}
    path = distilled(folder, **foreign, class_weights=str(folder))
    assert main([str(path), SMALL]) == 0
    assert main([str(distilled(folder)), SMALL, f"run.folder={folder / 'ours'}"]) == 0  # the same cache serves
    assert primary(folder / "run") == primary(folder / "ours")
    (folder / "checkpoint_gpu_0.pt").rename(folder / "checkpoint_gpu_2.pt")
    (folder / "checkpoint_gpu_1.pt").rename(folder / "checkpoint_gpu_0.pt")
    path = distilled(folder, **foreign, class_weights=str(folder))
    assert "checkpoint_gpu_1.pt" in refused(capsys, path, f"run.folder={folder / 'x'}")


def test_class_weights_of_other_classes_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone, _, _ = load_student(folder / "teacher" / "weights" / "student.pt")
    content = {"state_dict_backbone": backbone.state_dict(), "state_dict_softmax_fc": {"weight": torch.randn(7, 16)}}
    torch.save(content, folder / "checkpoint_gpu_0.pt")
    file = str(folder / "checkpoint_gpu_0.pt")
    message = refused(capsys, distilled(folder, run=None, weights=file, class_weights=file))
    assert "has 7 classes and the training data have 6" in message
    assert "use teacher.centres instead" in message
