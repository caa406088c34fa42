"""Aligns the faces of one photo, in one of several processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from gkd.core.errors import DataError
from gkd.core.files import atomic_write, read_bounded
from gkd.data.alignment import Pixels, Points, align_face
from gkd.data.image_header import image_format, image_size, is_whole
from gkd.data.landmarks import Landmarks
from gkd.inference.face_choice import FACE_CHOICES, SeveralFacesError
from gkd.inference.face_detector import FoundFace, YuNet, face_of_points

_MAX_PHOTO_BYTES = 256 << 20
_MAX_PHOTO_PIXELS = 120_000_000


@dataclass(frozen=True)
class CropSettings:
    """What decides how crops look.

    Attributes:
        faces: a name of FACE_CHOICES.
        size: the height and width of crops, in pixels.
        format: "jpg" or "png".
        quality: of JPEG, 1 to 100.
    """

    faces: str
    size: int
    format: str
    quality: int


@dataclass(frozen=True)
class AlignedFace:
    """A crop that was written: its path below the output folder, and where its face is in the photo."""

    crop: str
    points: tuple[tuple[float, float], ...]
    score: float | None


@dataclass(frozen=True)
class PhotoOutcome:
    """What became of one photo: its crops, or why there are none."""

    photo: str
    faces: tuple[AlignedFace, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class LandmarkSource:
    """Where a process gets landmarks: a table, or the detector's file with its least score."""

    landmarks: Landmarks | None
    detector: Path | None
    min_score: float

    def open(self) -> Callable[[str, Pixels], list[FoundFace]]:
        """A function of a photo's path and pixels. Detectors cannot be sent to a process, so each opens its own.

        Raises:
            DataError, ConfigError: as `YuNet`.
        """
        if self.detector is not None:
            network = YuNet(self.detector, self.min_score)
            return lambda _, pixels: network.find(pixels)
        landmarks = self.landmarks or {}
        return lambda photo, _: [face_of_points(points) for points in landmarks.get(photo, [])]


class PhotoAligner:
    """Aligns photos below one folder into another.

    Args:
        photos: the folder of photos.
        out: the folder of crops.
        source: where landmarks come from.
        settings: how crops look.
    """

    def __init__(self, photos: Path, out: Path, source: LandmarkSource, settings: CropSettings) -> None:
        self._photos = photos
        self._out = out
        self._find = source.open()
        self._none_found = "no face found" if source.detector is not None else "no landmarks given"
        self._settings = settings

    def __call__(self, photo: str) -> PhotoOutcome:
        """Write the crops of `photo`, a path below the folder of photos. What is wrong with it is told, not raised."""
        try:
            pixels = read_photo(self._photos / photo)
            faces = self._find(photo, pixels)
            if not faces:
                return PhotoOutcome(photo, why_not=self._none_found)
            chosen = FACE_CHOICES[self._settings.faces](faces, pixels.shape[:2])
            crops = [align_face(pixels, face.points, self._settings.size) for face in chosen]
        except (DataError, SeveralFacesError) as error:
            return PhotoOutcome(photo, why_not=str(error))
        names = [crop_path(photo, number, self._settings) for number in range(1, len(crops) + 1)]
        for name, crop in zip(names, crops, strict=True):
            _write_crop(self._out / name, crop, self._settings)
        return PhotoOutcome(photo, tuple(_describe(*item) for item in zip(names, chosen, strict=True)))


def read_photo(path: Path) -> Pixels:
    """The upright pixels of a photo, uint8 (H, W, 3), BGR: turned as its EXIF orientation says.

    Raises:
        DataError: missing, no image, damaged, cut short, or too large.
    """
    encoded = read_bounded(path, _MAX_PHOTO_BYTES)
    if image_format(encoded) is None:
        raise DataError("not a JPEG, PNG, BMP or WebP image" if encoded else "the photo is empty")
    extent = image_size(encoded)
    if extent is None or min(extent) < 1:
        raise DataError("the photo's header is damaged")
    if extent[0] * extent[1] > _MAX_PHOTO_PIXELS:
        raise DataError(f"{extent[0]}x{extent[1]} pixels are more than the {_MAX_PHOTO_PIXELS:,} allowed")
    if not is_whole(encoded):
        raise DataError("the photo is cut short")
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError("the photo cannot be decoded") from error
    if pixels is None:
        raise DataError("the photo is damaged")
    return np.asarray(pixels, np.uint8)


def crop_path(photo: str, number: int, settings: CropSettings) -> str:
    """Where the crop of a photo's face lies below the output folder; faces are numbered from 1 where all are taken."""
    path = PurePosixPath(photo)
    suffix = f"_face{number}" if settings.faces == "all" else ""
    return str(path.with_name(f"{path.stem}{suffix}.{settings.format}"))


def _describe(name: str, face: FoundFace) -> AlignedFace:
    return AlignedFace(name, _rounded(face.points), None if face.score is None else round(face.score, 4))


def _rounded(points: Points) -> tuple[tuple[float, float], ...]:
    return tuple((round(x, 3), round(y, 3)) for x, y in points.tolist())


def _write_crop(path: Path, crop: Pixels, settings: CropSettings) -> None:
    parameters: list[Any] = [cv2.IMWRITE_JPEG_QUALITY, settings.quality] if settings.format == "jpg" else []
    _, encoded = cv2.imencode(f".{settings.format}", crop, parameters)
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
