"""Proof, before the first step, that a teacher is a teacher: it verifies faces and it knows the classes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from gkd.core.errors import CheckpointError
from gkd.data import PairSet
from gkd.inference.embed import embed_images, evaluate_pairs
from gkd.inference.teacher import Teacher

logger = logging.getLogger(__name__)


class FaceData(Protocol):
    """Encoded images with class labels."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]: ...

    def describe(self, index: int) -> str: ...


@dataclass(frozen=True)
class TeacherCheck:
    """The two figures of a teacher, both fractions."""

    accuracy: float
    train_rank1: float
    num_samples: int


def check_teacher(
    teacher: Teacher,
    pairs: PairSet,
    dataset: FaceData,
    *,
    min_accuracy: float,
    min_train_rank1: float,
    num_samples: int,
    device: torch.device,
) -> TeacherCheck:
    """Measure `teacher` on `pairs` and on `num_samples` evenly spaced training images (all where there are fewer).

    Raises:
        CheckpointError: a figure is below its minimum; the message gives both figures.
    """
    accuracy = evaluate_pairs(
        teacher.backbone, teacher.input_spec, pairs, flip=True, batch_size=64, device=device
    ).accuracy
    indices = np.unique(np.linspace(0, len(dataset) - 1, num=min(num_samples, len(dataset))).astype(np.int64))
    check = TeacherCheck(accuracy, _rank1(teacher, dataset, indices, device), len(indices))
    logger.info(
        "teacher: verification accuracy %.4f on %s, training rank-1 %.4f on %d images",
        check.accuracy,
        pairs.name,
        check.train_rank1,
        check.num_samples,
    )
    if accuracy < min_accuracy or check.train_rank1 < min_train_rank1:
        raise CheckpointError(
            f"the teacher is too weak to learn from: verification accuracy {accuracy:.4f} on {pairs.name} "
            f"(teacher.min_accuracy {min_accuracy}), rank-1 {check.train_rank1:.4f} on {check.num_samples} training "
            f"images (teacher.min_train_rank1 {min_train_rank1}); check that its weights, input convention and class "
            "list belong to this data, or lower the minimum if these figures are what you expect"
        )
    return check


@torch.no_grad()
def _rank1(teacher: Teacher, dataset: FaceData, indices: np.ndarray, device: torch.device) -> float:
    """The share of images whose nearest class weight is that of their own class."""
    records = [dataset[int(index)] for index in indices]
    embeddings = embed_images(
        teacher.backbone,
        teacher.input_spec,
        [encoded for encoded, _ in records],
        batch_size=64,
        flip=False,
        device=device,
        describe=lambda position: dataset.describe(int(indices[position])),
    )
    cosine = teacher.head.cosine(torch.from_numpy(embeddings).to(device))
    predicted = cosine.argmax(1).cpu().numpy()
    return float(np.mean(predicted == np.array([label for _, label in records])))
