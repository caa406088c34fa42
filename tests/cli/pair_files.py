"""Small pair sets, a small network and figures without their times, for the tests of the evaluation tool."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gkd.data import PairSet
from gkd.models import InputSpec, create_backbone, save_student


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The tool sets up the process's logging, which later tests must not see."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), seed=0)


def write_run(folder: Path, seed: int, side: int = 32) -> Path:
    """The student of a run in `folder`, a small network of random weights."""
    torch.manual_seed(seed)
    backbone = create_backbone("mobilefacenet_classic", embedding_dim=16, input_size=(side, side))
    path = folder / "weights" / "student.pt"
    path.parent.mkdir(parents=True)
    save_student(path, backbone, InputSpec())
    return path


def write_pairs(path: Path, num_pairs: int, is_same: np.ndarray | None = None) -> Path:
    """Random JPEGs; the second image of a same pair is the first at another quality."""
    generator = np.random.default_rng(len(path.stem))
    labels = np.arange(num_pairs) % 2 == 0 if is_same is None else is_same
    images = []
    for label in labels:
        first, other = generator.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
        images += [_encode(first, 95), _encode(first if label else other, 80)]
    PairSet(images, labels).save(path)
    return path


def _encode(pixels: np.ndarray, quality: int) -> bytes:
    large = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_CUBIC)
    encoded: np.ndarray = cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return encoded.tobytes()


def without_extras(figures: dict[str, Any]) -> dict[str, Any]:
    """What the tool writes of a set, less what is not part of a `VerificationResult`."""
    extras = ("intervals", "identity_intervals", "seconds", "images_per_second")
    return {name: value for name, value in figures.items() if name not in extras}
