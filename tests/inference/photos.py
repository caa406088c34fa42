"""Photos for the tests of alignment: noise with known landmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gkd.data.alignment import template
from tests.data.faces import make_image

PHOTOS = ("ann/1.jpg", "ann/2.png", "bob/1.jpg", "top.jpg")
HEADER = "photo,face,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"


def write_photos(folder: Path, names: Iterable[str] = PHOTOS) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_image(number, (140, 160), path.suffix))
    return folder


def landmark_row(name: str, face: int = 1, shift: float = 10.0) -> str:
    return ",".join([name, str(face), *(str(value) for value in (template() + shift).ravel().tolist())])


def write_landmarks(path: Path, rows: Iterable[str] | None = None) -> Path:
    rows = [landmark_row(name) for name in PHOTOS] if rows is None else rows
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path
