"""Which of a photo's faces are meant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gkd.inference.face_detector import FoundFace

Extent = tuple[int, int]  # height and width of a photo, in pixels
Faces = Sequence[FoundFace]


class SeveralFacesError(ValueError):
    """A photo with several faces where only one may be."""


def largest(faces: Faces, extent: Extent) -> list[FoundFace]:
    """The largest face of those whose centre lies in the middle half of width and height; of all, where none does.

    A stranger whom the photo's border cuts is often larger than the person that it shows.
    """
    central = [face for face in faces if _is_central(face, extent)]
    return [max(central or faces, key=lambda face: face.box[2] * face.box[3])]


def center(faces: Faces, extent: Extent) -> list[FoundFace]:
    """The face whose centre is nearest to the photo's, for photos that were cut around a face."""
    height, width = extent
    return [min(faces, key=lambda face: math.dist(_centre(face), (width / 2, height / 2)))]


def every(faces: Faces, extent: Extent) -> list[FoundFace]:
    """All of them, the surest first."""
    return list(faces)


def only(faces: Faces, extent: Extent) -> list[FoundFace]:
    """The one that there is.

    Raises:
        SeveralFacesError: there are others.
    """
    if len(faces) > 1:
        raise SeveralFacesError(f"{len(faces)} faces, but only one is wanted")
    return list(faces)


FACE_CHOICES: dict[str, Callable[[Faces, Extent], list[FoundFace]]] = {
    "largest": largest,
    "center": center,
    "all": every,
    "only": only,
}


def _centre(face: FoundFace) -> tuple[float, float]:
    x, y, width, height = face.box
    return x + width / 2, y + height / 2


def _is_central(face: FoundFace, extent: Extent) -> bool:
    height, width = extent
    x, y = _centre(face)
    return width / 4 <= x <= width * 3 / 4 and height / 4 <= y <= height * 3 / 4
