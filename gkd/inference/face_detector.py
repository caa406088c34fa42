"""Finds faces and their five landmarks in photos, with YuNet through OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import read_bounded
from gkd.data.alignment import Pixels, Points

DEFAULT_MIN_SCORE = 0.6
_MAX_MODEL_BYTES = 64 << 20
_OVERLAP = 0.3  # of two boxes, above which they are one face
_MOST_FACES = 5000
_SIDE = 640
_SECOND_SIDE = 1280
_PROBE_SIDE = 320


@dataclass(frozen=True)
class FoundFace:
    """A face in a photo.

    Attributes:
        points: float64 (5, 2), the landmarks in pixels of the photo; see `gkd.data.alignment` for their order.
        box: x, y, width and height in pixels.
        score: how sure the detector is, 0 to 1; None for landmarks that were given.
    """

    points: Points
    box: tuple[float, float, float, float]
    score: float | None = None


def face_of_points(points: Points) -> FoundFace:
    """A face of which only the landmarks are known; its box is theirs."""
    low, high = points.min(0).tolist(), points.max(0).tolist()
    return FoundFace(points, (low[0], low[1], high[0] - low[0], high[1] - low[1]))


class YuNet:
    """The detector YuNet: for OpenCV, which reads its ONNX file.

    Source: Wu, Peng and Yu, "YuNet: a tiny millisecond-level face detector", 2023. Its five points are, by the
    person's sides, right eye, left eye, nose, right and left mouth corner: the template's order in the picture.

    Photos are never enlarged. Those with a side above 640 pixels are shrunk to it, for the network knows faces of 10
    to 300 pixels; where it finds nothing there, large photos are searched once more at 1280.

    Args:
        path: the ONNX file. Where its input has one fixed size, photos are put into the corner of a black one.
        min_score: faces below it are left out, 0 to 1.

    Raises:
        ConfigError: a score out of range.
        DataError: the file is missing, damaged, or no YuNet.
    """

    def __init__(self, path: str | Path, min_score: float = DEFAULT_MIN_SCORE) -> None:
        if not 0 <= min_score <= 1:
            raise ConfigError(f"--min-score: must be 0 to 1, got {min_score}")
        # OpenCV 5 warns of its own defaults.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        model = np.frombuffer(read_bounded(path, _MAX_MODEL_BYTES), np.uint8)
        self._network = _create(path, model, min_score)
        self._is_fixed = not self._runs(_PROBE_SIDE)
        if self._is_fixed and not self._runs(_SIDE):
            raise DataError(f"{path}: is no YuNet detector that OpenCV {cv2.__version__} can run; download it again")

    def find(self, photo: Pixels) -> list[FoundFace]:
        """The faces of a photo, the surest first.

        Args:
            photo: uint8 (H, W, 3), BGR.
        """
        longest = max(photo.shape[:2])
        sides = [_SIDE] if self._is_fixed or longest <= _SIDE else [_SIDE, _SECOND_SIDE]
        for side in sides:
            scale = min(1.0, side / longest)
            faces = self._find_at(photo, scale)
            if faces:
                return faces
        return []

    def _find_at(self, photo: Pixels, scale: float) -> list[FoundFace]:
        height, width = photo.shape[:2]
        if scale < 1:
            small = (max(1, round(width * scale)), max(1, round(height * scale)))
            photo = np.asarray(cv2.resize(photo, small, interpolation=cv2.INTER_AREA), np.uint8)
        # Sides were rounded to whole pixels, so each axis has its own factor.
        factors = np.array([width / photo.shape[1], height / photo.shape[0]])
        faces = [_read_face(row, factors) for row in self._detect(photo) if np.isfinite(row).all()]
        return sorted(faces, key=lambda face: -(face.score or 0.0))

    def _runs(self, side: int) -> bool:
        try:
            self._network.setInputSize((side, side))
            self._network.detect(np.zeros((side, side, 3), np.uint8))
        except cv2.error:
            return False
        return True

    def _detect(self, photo: Pixels) -> list[Points]:
        if self._is_fixed:
            height, width = photo.shape[:2]
            canvas = np.zeros((_SIDE, _SIDE, 3), np.uint8)
            canvas[:height, :width] = photo
            photo = canvas
        self._network.setInputSize((photo.shape[1], photo.shape[0]))
        rows = self._network.detect(photo)[1]
        return [] if rows is None else list(rows.astype(np.float64))


def _create(path: str | Path, model: Pixels, min_score: float) -> Any:
    nothing = np.zeros(0, np.uint8)
    try:
        return cv2.FaceDetectorYN.create("onnx", model, nothing, (_SIDE, _SIDE), min_score, _OVERLAP, _MOST_FACES)
    except (cv2.error, SystemError) as error:
        raise DataError(f"{path}: is no ONNX file that OpenCV can read; download the detector again") from error


def _read_face(row: Points, factors: npt.NDArray[np.float64]) -> FoundFace:
    """A face from YuNet's 15 numbers: the box, five points, the score. `factors` bring pixels back to the photo's."""
    points = (row[4:14].reshape(5, 2) + 0.5) * factors - 0.5
    x, y = ((row[:2] + 0.5) * factors - 0.5).tolist()
    width, height = (row[2:4] * factors).tolist()
    return FoundFace(points, (x, y, width, height), float(row[14]))
