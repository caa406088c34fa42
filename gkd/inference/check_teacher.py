"""Proof, before the first step, that a teacher is a teacher: it verifies faces and it knows the classes."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gkd.core import distributed
from gkd.core.errors import CheckpointError, DataError
from gkd.core.files import atomic_write, read_bounded
from gkd.data import FaceData, PairSet
from gkd.inference.check_input import check_input
from gkd.inference.embed import embed_images, evaluate_pairs
from gkd.inference.embedding_store import network_digest
from gkd.inference.teacher import Teacher

logger = logging.getLogger(__name__)

_MAX_RECORD_BYTES = 1 << 20


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
    is_foreign: bool = False,
    record: Path | None = None,
) -> TeacherCheck:
    """Measure `teacher` on `pairs` and on `num_samples` evenly spaced training images (all where there are fewer).

    Args:
        is_foreign: the network's input was declared by hand, so the likely alternatives are compared as well.
        record: a file to keep the figures in; where it has those of this very teacher, pairs and data, they are taken
            from it.

    Raises:
        CheckpointError: a figure is below its minimum; the message gives both figures.
        ConfigError: another input conversion than the declared one is clearly better.
    """
    key = _key(teacher, pairs, dataset, num_samples) if record is not None else {}
    check = _recorded(record, key)
    if check is None:
        if is_foreign:
            check_input(teacher.backbone, teacher.input_spec, pairs, device=device)
        check = _measure(teacher, pairs, dataset, num_samples, device)
        _write_record(record, key, check)
    logger.info(
        "teacher: verification accuracy %.4f on %s, training rank-1 %.4f on %d images",
        check.accuracy,
        pairs.name,
        check.train_rank1,
        check.num_samples,
    )
    if check.accuracy < min_accuracy or check.train_rank1 < min_train_rank1:
        raise CheckpointError(
            f"the teacher is too weak to learn from: verification accuracy {check.accuracy:.4f} on {pairs.name} "
            f"(teacher.min_accuracy {min_accuracy}), rank-1 {check.train_rank1:.4f} on {check.num_samples} training "
            f"images (teacher.min_train_rank1 {min_train_rank1}); check that its weights, input convention and class "
            "list belong to this data, or lower the minimum if these figures are what you expect"
        )
    return check


def _measure(
    teacher: Teacher, pairs: PairSet, dataset: FaceData, num_samples: int, device: torch.device
) -> TeacherCheck:
    accuracy = evaluate_pairs(
        teacher.backbone, teacher.input_spec, pairs, flip=True, batch_size=64, device=device, name=pairs.name
    ).accuracy
    indices = np.unique(np.linspace(0, len(dataset) - 1, num=min(num_samples, len(dataset))).astype(np.int64))
    return TeacherCheck(accuracy, _rank1(teacher, dataset, indices, device), len(indices))


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


def _key(teacher: Teacher, pairs: PairSet, dataset: FaceData, num_samples: int) -> dict[str, Any]:
    """Everything that the figures depend on."""
    weights = teacher.head.weight.detach().cpu().contiguous().numpy()
    digest = hashlib.sha256(np.packbits(pairs.is_same).tobytes())
    for image in pairs.images:
        digest.update(hashlib.sha256(image).digest())
    return {
        "network": network_digest(teacher.backbone),
        "input": str(teacher.input_spec),
        "class_weights": hashlib.sha256(weights.tobytes()).hexdigest(),
        "pairs": digest.hexdigest(),
        "data": dataset.fingerprint,
        "num_samples": num_samples,
    }


def _recorded(record: Path | None, key: dict[str, Any]) -> TeacherCheck | None:
    """The figures in `record` if they are those of `key`; rank 0 reads for all. A damaged record counts for nothing."""
    check: TeacherCheck | None = None
    if record is not None and distributed.rank() == 0 and record.exists():
        try:
            values = json.loads(read_bounded(record, _MAX_RECORD_BYTES))
            if values["key"] == key:
                check = TeacherCheck(
                    float(values["accuracy"]), float(values["train_rank1"]), int(values["num_samples"])
                )
        except (DataError, ValueError, KeyError, TypeError, RecursionError):
            logger.warning("%s: damaged; the teacher is measured anew", record)
    found: TeacherCheck | None = distributed.broadcast_object(check)
    return found


def _write_record(record: Path | None, key: dict[str, Any], check: TeacherCheck) -> None:
    if record is None or distributed.rank() != 0:
        return
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps({"key": key, **asdict(check)}, indent=2) + "\n", encoding="utf-8")
