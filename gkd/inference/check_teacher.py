"""Proof, before the first step, that a teacher is a teacher: it verifies faces and it knows the classes."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gkd.core.errors import CheckpointError
from gkd.data import FaceData, PairSet
from gkd.inference.embed import embed_images, evaluate_pairs
from gkd.inference.network_digest import network_digest
from gkd.inference.record import measured_once
from gkd.inference.teacher import Teacher

logger = logging.getLogger(__name__)

COSINES_AT_ONCE = 2**27
_RECORD_VERSION = 2  # of the values kept in a record; one with others is measured anew


@dataclass(frozen=True)
class TeacherCheck:
    """The two figures of a teacher, both fractions.

    accuracy, accuracy_std: of verification, mean and standard deviation over the folds, on the `num_pairs` pairs of
    `pairs_name`. train_rank1: on `num_samples` training images.
    """

    accuracy: float
    train_rank1: float
    num_samples: int
    accuracy_std: float
    num_pairs: int
    pairs_name: str


def check_teacher(
    teacher: Teacher,
    pairs: PairSet,
    dataset: FaceData,
    *,
    min_accuracy: float,
    min_train_rank1: float,
    num_samples: int,
    device: torch.device,
    record: Path | None = None,
) -> TeacherCheck:
    """Measure `teacher` on `pairs` and on `num_samples` evenly spaced training images (all where there are fewer).

    Args:
        record: a file to keep the figures in; where it has those of this very teacher, pairs and data, they are taken
            from it.

    Raises:
        CheckpointError: a figure is below its minimum (the message gives both figures), or the record is damaged.
    """
    values = measured_once(
        record,
        _key(teacher, pairs, dataset, num_samples) if record is not None else {},
        lambda: asdict(_measure(teacher, pairs, dataset, num_samples, device)),
    )
    check = _from_plain(values, pairs.name, record)
    logger.info(
        "teacher: verification accuracy %.4f +- %.4f on %d pairs of %s, training rank-1 %.4f on %d images",
        check.accuracy,
        check.accuracy_std,
        check.num_pairs,
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
    result = evaluate_pairs(
        teacher.backbone, teacher.input_spec, pairs, flip=True, batch_size=64, device=device, name=pairs.name
    )
    indices = sampled_images(dataset, num_samples)
    rank1 = _rank1(teacher, dataset, indices, device)
    return TeacherCheck(result.accuracy, rank1, len(indices), result.accuracy_std, result.num_pairs, pairs.name)


def _from_plain(values: Mapping[str, Any], pairs_name: str, record: Path | None) -> TeacherCheck:
    """The figures of a record, which anyone may have changed; the set bears the name that it has now."""
    accuracy, train_rank1, accuracy_std = (
        _number(values.get(name)) for name in ("accuracy", "train_rank1", "accuracy_std")
    )
    num_samples, num_pairs = (_number(values.get(name)) for name in ("num_samples", "num_pairs"))
    are_fractions = all(0 <= value <= 1 for value in (accuracy, train_rank1, accuracy_std))
    if not (are_fractions and 1 <= num_samples < math.inf and 1 <= num_pairs < math.inf):
        raise CheckpointError(f"{record}: damaged: its figures are {str(dict(values))[:200]}; remove it")
    return TeacherCheck(accuracy, train_rank1, int(num_samples), accuracy_std, int(num_pairs), pairs_name)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def sampled_images(dataset: FaceData, num_samples: int) -> npt.NDArray[np.int64]:
    """Images evenly spaced over the set; of tar shards, which hold images in random order, those of the first ones."""
    shards = getattr(dataset, "shard_ids", None)
    if shards is None:
        spaced = np.linspace(0, len(dataset) - 1, num=min(num_samples, len(dataset)))
        return np.unique(spaced.astype(np.int64))
    found = np.empty(0, dtype=np.int64)
    for ids in shards:
        if len(found) >= num_samples:
            break
        found = np.concatenate([found, ids[: num_samples - len(found)]])
    return found


@torch.no_grad()
def _rank1(teacher: Teacher, dataset: FaceData, indices: npt.NDArray[np.int64], device: torch.device) -> float:
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
    # Some images at a time: with millions of classes the cosines of all would not fit.
    rows = max(1, COSINES_AT_ONCE // len(teacher.head.weight))
    parts = torch.split(torch.from_numpy(embeddings).to(device), rows)
    predicted = torch.cat([teacher.head.cosine(part).argmax(1) for part in parts]).cpu().numpy()
    return float(np.mean(predicted == np.array([label for _, label in records])))


def pairs_digest(pairs: PairSet) -> str:
    """SHA-256 (hex) of a set's images and of which pairs are of one person."""
    digest = hashlib.sha256(np.packbits(pairs.is_same).tobytes())
    for image in pairs.images:
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()


def _key(teacher: Teacher, pairs: PairSet, dataset: FaceData, num_samples: int) -> dict[str, Any]:
    """Everything that the figures depend on."""
    weights = teacher.head.weight.detach().cpu().contiguous().numpy()
    return {
        "version": _RECORD_VERSION,
        "network": network_digest(teacher.backbone),
        "input": str(teacher.input_spec),
        "class_weights": hashlib.sha256(weights.tobytes()).hexdigest(),
        "pairs": pairs_digest(pairs),
        "data": dataset.fingerprint,
        "num_samples": num_samples,
    }
