"""Makes a small set in the layout of IJB-B or IJB-C from drawn faces, for tests and trials."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError
from gkd.core.files import atomic_write
from gkd.data.alignment import Pixels, Points, template
from gkd.data.ijb_lists import NAMES
from gkd.data.synthetic import draw_face

_FACE = 112
_SIDES = (150, 260)
_ZOOMS = (0.8, 1.6)
_MOST_TURN = 0.4  # radians
_FRAMES_PER_VIDEO = 3
_QUALITY = 95


class _Face(NamedTuple):
    """A line of both lists of images."""

    name: str
    template: int
    media: int
    points: Points
    score: float


def make_miniature(folder: str | Path, num_people: int, images_each: int, seed: int, name: str = "IJBC") -> Path:
    """Write `meta` with its three lists, and `loose_crop`, into `folder`.

    Every person has two templates, which share the images evenly: the first image of a template is a photo, the others
    are frames of videos, three each. The first templates of all people are compared with the second ones of all: P =
    `num_people` squared pairs, of which `num_people` are of one person. Faces are turned, enlarged and moved in their
    photos; landmarks and detector scores are given for each.

    Args:
        num_people: at least 2.
        images_each: at least 2.
        seed: everything written is a function of it.
        name: "IJBB" or "IJBC".

    Returns:
        `folder`.

    Raises:
        ConfigError: a number or a name out of its range.
    """
    if num_people < 2 or images_each < 2 or name not in NAMES:
        raise ConfigError(
            f"a miniature needs at least 2 people, 2 images of each and a name of {', '.join(NAMES)}, "
            f"got {num_people}, {images_each} and {name!r}"
        )
    folder, generator = Path(folder), np.random.default_rng((seed, num_people, images_each))
    # Numbers with gaps and out of order, as the real ones.
    template_ids = 1 + generator.permutation(4 * num_people)[: 2 * num_people].reshape(num_people, 2)
    faces: list[_Face] = []
    for person, ids in enumerate(template_ids):
        for half, images in enumerate(np.array_split(np.arange(images_each), 2)):
            for place, image in enumerate(images.tolist()):
                pixels, points = _loose_crop(draw_face(seed, person, image), generator)
                face = _Face(
                    name=f"{len(faces) + 1}.jpg",
                    template=int(ids[half]),
                    media=1000 * person + 100 * half + -(-place // _FRAMES_PER_VIDEO),
                    points=points,
                    score=float(generator.uniform(0.3, 1.0)),
                )
                _write_image(folder / "loose_crop" / face.name, pixels)
                faces.append(face)
    _write_lists(folder / "meta", name.lower(), faces, template_ids)
    return folder


def _loose_crop(face: Pixels, generator: np.random.Generator) -> tuple[Pixels, Points]:
    """A photo with the face somewhere in it, and its landmarks."""
    height, width = generator.integers(*_SIDES, 2).tolist()
    zoom, turn = generator.uniform(*_ZOOMS), generator.uniform(-_MOST_TURN, _MOST_TURN)
    centre = ((_FACE - 1) / 2, (_FACE - 1) / 2)
    matrix = np.asarray(cv2.getRotationMatrix2D(centre, float(np.degrees(turn)), float(zoom)), np.float64)
    matrix[:, 2] += np.array([width - _FACE, height - _FACE]) / 2 + generator.uniform(-10, 10, 2)
    photo = np.empty((height, width, 3), np.uint8)
    photo[:] = generator.integers(0, 256, 3, dtype=np.uint8)
    cv2.warpAffine(face, matrix, (width, height), photo, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
    return photo, template() @ matrix[:, :2].T + matrix[:, 2]


def _write_image(path: Path, pixels: Pixels) -> None:
    _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _write_lists(folder: Path, prefix: str, faces: list[_Face], template_ids: npt.NDArray[np.int64]) -> None:
    lists = {
        "face_tid_mid": [f"{face.name} {face.template} {face.media}" for face in faces],
        "name_5pts_score": [
            " ".join([face.name, *(f"{value:.3f}" for value in face.points.ravel()), f"{face.score:.6f}"])
            for face in faces
        ],
        "template_pair_label": [
            f"{left} {right} {int(person == other)}"
            for person, left in enumerate(template_ids[:, 0])
            for other, right in enumerate(template_ids[:, 1])
        ],
    }
    for name, lines in lists.items():
        with atomic_write(folder / f"{prefix}_{name}.txt") as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
