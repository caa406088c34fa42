"""Small images and .rec files for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from gkd.data import RecordWriter


def make_image(number: int, size: tuple[int, int] = (16, 16), suffix: str = ".png") -> bytes:
    """An encoded image of noise that `number` fixes."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return bytes(cv2.imencode(suffix, pixels)[1])


def write_faces(path: Path, num_images: int = 20, num_identities: int = 4) -> list[tuple[bytes, int]]:
    """A .rec of that many images, in equal groups; returns what was written."""
    faces = [(make_image(number), number * num_identities // num_images) for number in range(num_images)]
    with RecordWriter(path) as writer:
        for encoded, label in faces:
            writer.write(label, encoded)
    return faces
