"""The figures of a teacher, measured once and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gkd.core.errors import CheckpointError
from gkd.data import PairSet
from gkd.heads import SoftmaxHead
from gkd.inference.check_teacher import TeacherCheck, check_teacher
from gkd.inference.embed import evaluate_pairs
from gkd.inference.teacher import Teacher
from gkd.models import InputSpec
from tests.inference.test_check_input import PlusMinusOneBackbone, make_pairs

NUM_CLASSES = 5
CPU = torch.device("cpu")


class Faces:
    """The images of pairs as a training set: image i is of class i mod 5."""

    def __init__(self, pairs: PairSet) -> None:
        self.images = pairs.images
        self.fingerprint = "faces"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.images[index], index % NUM_CLASSES

    def describe(self, index: int) -> str:
        return f"image {index}"


class Counting(PlusMinusOneBackbone):
    """Counts the images it gets."""

    num_images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.num_images += len(images)
        return super().forward(images)


def make_teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(Counting(), SoftmaxHead(Counting.embedding_dim, NUM_CLASSES), InputSpec())


def check(teacher: Teacher, pairs: PairSet, record: Path | None = None, **settings: Any) -> TeacherCheck:
    arguments = {"min_accuracy": 0.0, "min_train_rank1": 0.0, "num_samples": 20, "device": CPU} | settings
    faces: Any = Faces(pairs)
    return check_teacher(teacher, pairs, faces, record=record, **arguments)


def test_figures_are_those_of_the_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    teacher, pairs = make_teacher(), make_pairs(100)
    found = check(teacher, pairs)
    expected = evaluate_pairs(teacher.backbone, teacher.input_spec, pairs)
    assert (found.accuracy, found.accuracy_std) == (expected.accuracy, expected.accuracy_std)
    assert found.accuracy_std > 0
    assert (found.num_pairs, found.pairs_name, found.num_samples) == (100, "drawn", 20)
    indices = np.linspace(0, 199, 20).astype(int)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([_decoded(pairs.images[index]) for index in indices])).permute(0, 3, 1, 2)
        rows = nn.functional.normalize(teacher.backbone(InputSpec().convert(pixels)))
        nearest = (rows @ nn.functional.normalize(teacher.head.weight).T).argmax(1).numpy()
    assert found.train_rank1 == pytest.approx(np.mean(nearest == indices % NUM_CLASSES))
    assert f"accuracy {found.accuracy:.4f} +- {found.accuracy_std:.4f} on 100 pairs of drawn, training" in caplog.text


def _decoded(image: bytes) -> np.ndarray:
    import cv2

    return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].copy()


def test_figures_are_kept_and_the_set_bears_its_name_of_now(tmp_path: Path) -> None:
    teacher, pairs, record = make_teacher(), make_pairs(40), tmp_path / "teacher_check.json"
    first = check(teacher, pairs, record)
    num_images = teacher.backbone.num_images
    renamed = PairSet(pairs.images, pairs.is_same, "other name")
    assert check(teacher, renamed, record) == replace(first, pairs_name="other name")
    assert teacher.backbone.num_images == num_images
    with pytest.raises(CheckpointError, match=r"too weak to learn from: verification accuracy .* \(teacher\.min_acc"):
        check(teacher, pairs, record, min_accuracy=1.01)


def test_a_record_of_an_older_version_is_measured_anew(tmp_path: Path) -> None:
    teacher, pairs, record = make_teacher(), make_pairs(40), tmp_path / "teacher_check.json"
    first = check(teacher, pairs, record)
    num_images = teacher.backbone.num_images
    stored = json.loads(record.read_text())
    del stored["key"]["version"]
    stored["values"] = {"accuracy": 0.5, "train_rank1": 0.5, "num_samples": 20}
    record.write_text(json.dumps(stored))
    assert check(teacher, pairs, record) == first
    assert teacher.backbone.num_images == 2 * num_images
    assert set(json.loads(record.read_text())["values"]) >= {"accuracy_std", "num_pairs"}


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 1.5},
        {"accuracy": None},
        {"accuracy_std": "small"},
        {"train_rank1": float("nan")},
        {"num_pairs": 0},
        {"num_samples": float("inf")},
        {"num_pairs": True},
    ],
)
def test_a_record_of_impossible_figures_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    teacher, pairs, record = make_teacher(), make_pairs(40), tmp_path / "teacher_check.json"
    check(teacher, pairs, record)
    stored = json.loads(record.read_text())
    stored["values"] |= change
    record.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"teacher_check\.json: damaged: its figures are \{.*\}; remove it"):
        check(teacher, pairs, record)
