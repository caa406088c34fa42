"""Reads the five landmarks of photos from a CSV file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gkd.core.errors import DataError
from gkd.data.alignment import Points, is_mirrored
from gkd.data.text_lists import Faults, inner_path, read_lines, shown, split_csv

_PHOTO_NAMES = ("photo", "path", "file", "image", "image_id", "filename")
_POINT_NAMES = (
    tuple(f"{axis}{point}" for point in range(1, 6) for axis in "xy"),
    tuple(f"{point}_{axis}" for point in ("le", "re", "nose", "lm", "rm") for axis in "xy"),
    tuple(f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for axis in "xy"),
)
_FACE_NAME = "face"
_LARGEST = 100_000.0

Landmarks = dict[str, list[Points]]  # of each photo, the points of its faces in the file's order


def read_landmarks(path: str | Path) -> Landmarks:
    """Read five landmarks of each face.

    The header names the columns, in any order: one for the photo's path below the photos' folder (photo, path, file,
    image, image_id or filename), and ten for the points: x1, y1, … x5, y5; or le_x, le_y, re_*, nose_*, lm_*, rm_*; or
    lefteye_x, … as CelebA has them. Other columns are not read. Points are in pixels of the upright photo, ordered as
    in `alignment`. Where a column `face` is there, a photo may have several lines; `faces.csv`, which alignment
    writes, is such a file.

    Returns:
        By the photo's path, float64 (5, 2) for each of its faces.

    Raises:
        DataError: a file that cannot be read as such; all wrong lines are named. Or left and right are exchanged in
            most of its lines.
    """
    path = Path(path)
    (_, header), *lines = read_lines(path)
    columns = _read_columns(path, header)
    faults = Faults(path, "lines are wrong")
    landmarks: Landmarks = {}
    seen: dict[tuple[str, str], int] = {}
    for number, line in lines:
        try:
            photo, face, points = _read_row(line, columns)
        except ValueError as error:
            faults.add_line(number, str(error))
            continue
        if (photo, face) in seen:
            faults.add_line(number, f"{shown(photo)} is already in line {seen[photo, face]}")
            continue
        seen[photo, face] = number
        landmarks.setdefault(photo, []).append(points)
    faults.raise_any()
    if not landmarks:
        raise DataError(f"{path}: has a header, but no landmarks")
    _require_unmirrored(path, landmarks)
    return landmarks


def _read_columns(path: Path, header: str) -> list[str]:
    try:
        columns = [column.lower() for column in split_csv(header)]
    except ValueError as error:
        raise DataError(f"{path}: line 1: {error}") from error
    photos = [column for column in columns if column in _PHOTO_NAMES]
    points = next((names for names in _POINT_NAMES if set(names) <= set(columns)), None)
    if len(photos) != 1 or points is None:
        raise DataError(
            f"{path}: line 1: the header is {shown(header)}, but a column `photo` and ten of points are needed: "
            "`photo,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5`"
        )
    if any(columns.count(name) > 1 for name in (*points, _FACE_NAME)):
        raise DataError(f"{path}: line 1: the header {shown(header)} has a column twice")
    # Every column gets the name of its role: "photo", "face", 0 to 9 for the points, or none.
    roles = {photos[0]: "photo", _FACE_NAME: "face", **{name: str(place) for place, name in enumerate(points)}}
    return [roles.get(column, "") for column in columns]


def _read_row(line: str, columns: Sequence[str]) -> tuple[str, str, Points]:
    fields = split_csv(line)
    if len(fields) != len(columns):
        raise ValueError(f"{len(fields)} fields, but the header has {len(columns)}")
    row = dict(zip(columns, fields, strict=True))
    photo = inner_path(row["photo"])
    points = np.array([_read_number(row[str(place)]) for place in range(10)]).reshape(5, 2)
    if len(np.unique(points, axis=0)) < 5:
        raise ValueError(f"two landmarks of {shown(photo)} are at the same place")
    return photo, row.get("face", ""), points


def _read_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{shown(text)} is no place in pixels")
    return value


def _require_unmirrored(path: Path, landmarks: Landmarks) -> None:
    mirrored = [photo for photo, faces in landmarks.items() for points in faces if is_mirrored(points)]
    num_faces = sum(len(faces) for faces in landmarks.values())
    if 2 * len(mirrored) > num_faces:
        raise DataError(
            f"{path}: left and right are exchanged in {len(mirrored):,} of {num_faces:,} faces, such as that of "
            f"{mirrored[0]}; the left eye and mouth corner are those at the left of the picture, not the person's"
        )
