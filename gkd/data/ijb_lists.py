"""Reads the lists of the 1:1 protocols of IJB-B and IJB-C, in the layout in which the field passes them on.

IJBC/ (or IJBB/, then `ijbb_`):
    loose_crop/1.jpg …                      photos cut loosely around a face
    meta/ijbc_face_tid_mid.txt              `image template media`
    meta/ijbc_name_5pts_score.txt           `image x1 y1 … x5 y5 score`: five landmarks, the face detector's score
    meta/ijbc_template_pair_label.txt       `template template label`, label 1 for one person, else 0

The first two lists name the images in the same order. Fields are parted by blanks or tabs. IJB-C has 469,375 images,
23,124 templates and 15,658,489 pairs.

Shapes: n images, T templates, P pairs.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.data.text_lists import Faults, shown
from gkd.data.whole_number_lines import read_number_rows, text_lines

_log = logging.getLogger(__name__)

NAMES = ("IJBB", "IJBC")
_MAX_IMAGES = 10_000_000
_MAX_PAIRS = 100_000_000
_LARGEST_COORDINATE = 100_000.0
_LEAST_EXTENT = 0.01  # pixels; below it no transform follows
_FACE_DUE = "`image template media`, the last two whole numbers of at most 9 digits"
_POINTS_DUE = "`image x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score`"
_PAIR_DUE = "`template template label`, all whole numbers of at most 9 digits"
_NAME = rb"([^\s/\\\x00]++)"
_NUMBER = rb"[-+]?+(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?+\d++)?+"
_FACE_LINE = re.compile(_NAME + rb"[ \t]++(\d{1,9}+)[ \t]++(\d{1,9}+)\s*+")
_POINTS_LINE = re.compile(_NAME + rb"((?:[ \t]++" + _NUMBER + rb"){11})\s*+")
_LARGEST_TABLE = 1 << 24

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class IjbFaces:
    """The images of a protocol and the templates that they belong to.

    Attributes:
        folder: holds `meta` and `loose_crop`.
        name: "IJBB" or "IJBC".
        image_names: files in `loose_crop`, (n).
        landmarks: float64 (n, 5, 2), in pixels, ordered as in `alignment`.
        detector_scores: float64 (n,), 0 to 1.
        template_of: (n,), 0 to T - 1.
        media_of: (n,), the number of the photo or video.
        template_ids: (T,), ascending: the number that the lists give each template.
    """

    folder: Path
    name: str
    image_names: tuple[str, ...]
    landmarks: npt.NDArray[np.float64]
    detector_scores: npt.NDArray[np.float64]
    template_of: Ints
    media_of: Ints
    template_ids: Ints

    def __len__(self) -> int:
        return len(self.image_names)

    @property
    def num_templates(self) -> int:
        """T."""
        return len(self.template_ids)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.folder / "loose_crop" / self.image_names[index]

    def describe(self, index: int) -> str:
        """Where image `index` lies, for messages."""
        return f"{self.path(index)} (template {self.template_ids[self.template_of[index]]})"


@dataclass(frozen=True, eq=False)
class IjbPairs:
    """Which templates are compared.

    Attributes:
        left, right: int32 (P,), 0 to T - 1.
        is_same: bool (P,), whether the two show one person.
    """

    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    is_same: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.is_same)


def read_ijb_faces(folder: str | Path, name: str | None = None) -> IjbFaces:
    """Read the two lists of images, and see that every image is there.

    Args:
        folder: IJBB or IJBC, which holds `meta` and `loose_crop`.
        name: "IJBB" or "IJBC"; by default the one whose lists `meta` holds.

    Raises:
        ConfigError: an unknown name.
        DataError: a list or an image is missing, a line is not what is due, an image comes twice, or the lists do not
            agree.
    """
    folder = Path(folder)
    name = _find_name(folder, name)
    names, templates, medias, lines = _read_faces(_list_path(folder, name, "face_tid_mid"))
    landmarks, scores = _read_points(folder, name, names, lines)
    _require_images(folder / "loose_crop", names)
    template_ids, template_of = np.unique(templates, return_inverse=True)
    _log.info("%s: %d images in %d templates", name, len(names), len(template_ids))
    members = tuple(names), landmarks, scores, template_of.astype(np.int64), medias, template_ids
    return IjbFaces(folder, name, *members)


def read_ijb_pairs(faces: IjbFaces) -> IjbPairs:
    """Read the list of pairs of templates; a block of lines at a time, so memory is that of the result.

    Raises:
        DataError: the list is missing, a line is not what is due, a template has no images, a label is neither 0 nor
            1, a pair is labelled both ways, or only one label occurs.
    """
    path = _list_path(faces.folder, faces.name, "template_pair_label")
    place_of = _PlaceOfTemplate(faces.template_ids)
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    num_pairs = 0
    for lines, rows in read_number_rows(path, 3, _PAIR_DUE):
        _refuse_line(path, lines, rows[:, 2] > 1, rows[:, 2], "is no label; it must be 0 or 1")
        places = [place_of(rows[:, column]) for column in (0, 1)]
        for column in (0, 1):
            _refuse_line(path, lines, places[column] < 0, rows[:, column], f"is no template in {_other_list(faces)}")
        parts.append((*places, rows[:, 2] == 1))
        num_pairs += len(rows)
        if num_pairs > _MAX_PAIRS:
            raise DataError(f"{path}: has more than the {_MAX_PAIRS:,} pairs allowed")
    if not parts:
        raise DataError(f"{path}: is empty; {_PAIR_DUE} is due on every line")
    pairs = IjbPairs(*(np.concatenate([part[column] for part in parts]) for column in range(3)))
    _check_pairs(path, pairs, faces)
    return pairs


def _find_name(folder: Path, name: str | None) -> str:
    if name is not None and name not in NAMES:
        raise ConfigError(f"the name must be one of {', '.join(NAMES)}, got {name!r}")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = [one for one in NAMES if _list_path(folder, one, "face_tid_mid").is_file()]
    if name is not None or len(found) == 1:
        return name or found[0]
    if found:
        raise DataError(f"{folder / 'meta'}: holds the lists of {' and of '.join(found)}; say which is meant")
    inner = [one for one in NAMES if (folder / one / "meta").is_dir()]
    hint = f"; give {folder / inner[0]}" if inner else ""
    raise DataError(f"{folder}: has no meta/ijbb_face_tid_mid.txt or meta/ijbc_face_tid_mid.txt{hint}")


def _list_path(folder: Path, name: str, of: str) -> Path:
    return folder / "meta" / f"{name.lower()}_{of}.txt"


def _other_list(faces: IjbFaces) -> str:
    return _list_path(faces.folder, faces.name, "face_tid_mid").name


def _read_faces(path: Path) -> tuple[list[str], Ints, Ints, list[int]]:
    """Names, templates, medias, and the line of each."""
    names: dict[str, int] = {}
    lines: list[int] = []
    numbers: list[tuple[bytes, bytes]] = []
    for number, line in _bounded_lines(path):
        match = _FACE_LINE.fullmatch(line)
        name = _decoded(match[1]) if match else None
        if match is None or name is None:
            raise _wrong_line(path, number, line, _FACE_DUE)
        if name in names:
            first = lines[names[name]]
            raise DataError(f"{path}: line {number}: the image {shown(name)} is already on line {first}")
        names[name] = len(names)
        lines.append(number)
        numbers.append((match[2], match[3]))
    if not names:
        raise DataError(f"{path}: is empty; {_FACE_DUE} is due on every line")
    columns = np.array([[int(template), int(media)] for template, media in numbers], np.int64)
    return list(names), columns[:, 0].copy(), columns[:, 1].copy(), lines


def _read_points(
    folder: Path, name: str, names: list[str], lines: list[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Landmarks and scores, of the images in the order of the other list."""
    path, other = _list_path(folder, name, "name_5pts_score"), _list_path(folder, name, "face_tid_mid")
    values = np.empty((len(names), 11))
    own_lines = np.empty(len(names), np.int64)
    count = 0
    for number, line in _bounded_lines(path):
        match = _POINTS_LINE.fullmatch(line)
        if match is None:
            raise _wrong_line(path, number, line, _POINTS_DUE)
        if count < len(names):
            if match[1] != names[count].encode():
                raise DataError(
                    f"{path}: line {number}: the image is {shown(match[1].decode(errors='replace'))}, but "
                    f"{shown(names[count])} on line {lines[count]} of {other.name}; the lists must have the same order"
                )
            values[count] = list(map(float, match[2].split()))
            own_lines[count] = number
        count += 1
    if count != len(names):
        raise DataError(f"{path}: has {count:,} images, but {other.name} has {len(names):,}; download both again")
    landmarks, scores = values[:, :10].reshape(-1, 5, 2).copy(), values[:, 10].copy()
    _check_values(path, own_lines, landmarks, scores)
    return landmarks, scores


def _check_values(path: Path, lines: Ints, landmarks: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> None:
    farthest = np.abs(landmarks).max(axis=(1, 2))
    is_far = ~(farthest <= _LARGEST_COORDINATE)
    _refuse_line(path, lines, is_far, farthest, f"pixels are beyond the {_LARGEST_COORDINATE:,.0f} for a landmark")
    is_one_place = np.ptp(landmarks, axis=1).max(axis=1) < _LEAST_EXTENT
    _refuse_line(path, lines, is_one_place, landmarks[:, 0], "is the place of all landmarks: no face can be aligned")
    _refuse_line(path, lines, ~((scores >= 0) & (scores <= 1)), scores, "is no detector score; 0 to 1 is due")


def _bounded_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank."""
    count = 0
    for number, line in text_lines(path):
        if not line.strip():
            continue
        count += 1
        if count > _MAX_IMAGES:
            raise DataError(f"{path}: has more than the {_MAX_IMAGES:,} images allowed")
        yield number, line


def _decoded(name: bytes) -> str | None:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _wrong_line(path: Path, number: int, line: bytes, due: str) -> DataError:
    return DataError(f"{path}: line {number}: is {shown(line.decode(errors='replace'))}, but {due} is due")


def _require_images(folder: Path, names: list[str]) -> None:
    try:
        with os.scandir(folder) as entries:
            present = {entry.name for entry in entries}
    except OSError as error:
        raise DataError(f"{folder}: the images cannot be listed: {error.strerror}") from error
    faults = Faults(folder, f"of {len(names):,} images are missing")
    for name in names:
        if name not in present:
            faults.add(f"{name} is missing")
    faults.raise_any()


class _PlaceOfTemplate:
    """Where each number is among the ascending template numbers; -1 where it is not."""

    def __init__(self, template_ids: Ints) -> None:
        self._ids = template_ids
        self._table: npt.NDArray[np.int32] | None = None
        if template_ids[-1] < _LARGEST_TABLE:
            self._table = np.full(int(template_ids[-1]) + 1, -1, np.int32)
            self._table[template_ids] = np.arange(len(template_ids), dtype=np.int32)

    def __call__(self, numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        if self._table is not None:
            places = self._table[np.minimum(numbers, len(self._table) - 1)]
            places[numbers >= len(self._table)] = -1
            return places
        places = np.searchsorted(self._ids, numbers).astype(np.int32)
        places[self._ids[np.minimum(places, len(self._ids) - 1)] != numbers] = -1
        return places


def _refuse_line(
    path: Path, lines: Ints, is_wrong: npt.NDArray[np.bool_], values: npt.NDArray[Any], fault: str
) -> None:
    """Raise for the first of some lines that is wrong."""
    if is_wrong.any():
        first = int(np.argmax(is_wrong))
        raise DataError(f"{path}: line {lines[first]}: {values[first]} {fault}")


def _check_pairs(path: Path, pairs: IjbPairs, faces: IjbFaces) -> None:
    num_same = int(np.count_nonzero(pairs.is_same))
    if num_same in (0, len(pairs)):
        raise DataError(
            f"{path}: has {num_same:,} pairs of one person and {len(pairs) - num_same:,} of two; needs both"
        )
    # One number for a pair, whichever of its templates comes first, and its label in the lowest bit.
    keys = np.minimum(pairs.left, pairs.right).astype(np.int64)
    keys *= faces.num_templates
    keys += np.maximum(pairs.left, pairs.right)
    keys *= 2
    keys += pairs.is_same
    keys.sort()
    is_repeated = keys[1:] >> 1 == keys[:-1] >> 1
    is_contrary = is_repeated & (keys[1:] != keys[:-1])
    if is_contrary.any():
        first, second = divmod(int(keys[int(np.argmax(is_contrary))] >> 1), faces.num_templates)
        raise DataError(
            f"{path}: the pair of templates {faces.template_ids[first]} and {faces.template_ids[second]} is labelled "
            f"both 0 and 1, as are {int(is_contrary.sum()) - 1} more; download the list again"
        )
    num_repeated, num_alone = int(is_repeated.sum()), int((pairs.left == pairs.right).sum())
    if num_repeated or num_alone:
        _log.warning("%s: %d pairs come again, %d are of a template with itself", path, num_repeated, num_alone)
