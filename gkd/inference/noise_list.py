"""Tables of images that may be label noise (label_noise.csv and the like): written for people, read back after them.

Shapes: n images of the data set, N listed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.files import GIB, atomic_write, read_bounded
from gkd.data import FaceData

_MAX_LIST_BYTES = 8 * GIB
_MAX_DIGITS = 18

_COLUMNS = (
    "sample_id",
    "where",
    "label",
    "identity",
    "own_cosine",
    "nearest_label",
    "nearest_identity",
    "nearest_cosine",
    "used",
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def image_rows(
    dataset: FaceData,
    labels: npt.NDArray[np.integer[Any]],
    images: Ints,
    own_cosines: Floats,
    nearest: Ints,
    nearest_cosines: Floats,
    is_used: npt.NDArray[np.bool_],
) -> Iterator[tuple[Any, ...]]:
    """A head, then a row for each of `images`.

    Args:
        labels: (n,), of the data set.
        images: (N,), sample ids, in the order of the rows.
        own_cosines: (n,), to the centre of the class's other images; NaN is written as nothing.
        nearest, nearest_cosines: (N,), the nearest other class of each; -1 and -inf are written as nothing.
        is_used: (n,), which images went into the centres.
    """
    yield _COLUMNS
    for place, image in enumerate(images.tolist()):
        label, other = int(labels[image]), int(nearest[place])
        own, theirs = _number(own_cosines[image]), _number(nearest_cosines[place])
        names = identity_name(dataset, label), identity_name(dataset, other)
        where, used = dataset.describe(image), int(is_used[image])
        yield image, where, label, names[0], own, other if other >= 0 else "", names[1], theirs, used


def identity_name(dataset: FaceData, label: int) -> str:
    """The name of a class, or nothing where names are unknown."""
    names = dataset.identity_names
    return names[label] if names is not None and label >= 0 else ""


def write_csv(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write a table; names that are not UTF-8 are told apart by their escapes.

    Raises:
        DataError: it cannot be written.
    """
    try:
        with (
            atomic_write(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            csv.writer(file).writerows(rows)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; name another file") from error


def read_image_list(path: str | Path, dataset: FaceData) -> Ints:
    """The images that a table lists, ascending, each once. Only `sample_id` and, where it is there, `label` are read.

    Raises:
        DataError: a table that cannot be read, has no `sample_id`, lists no image, an image that the data do not have,
            or one whose label in the data is another.
    """
    path = Path(path)
    try:
        text = read_bounded(path, _MAX_LIST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save the table as CSV in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "sample_id" not in (reader.fieldnames or ()):
            raise DataError(f"{path}: has no column `sample_id`; its first line must name the columns, with commas")
        images = [_listed_image(path, reader.line_num, row, dataset) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} cannot be read: {error}") from error
    if not images:
        raise DataError(f"{path}: lists no image")
    return np.unique(np.array(images, dtype=np.int64))


def _listed_image(path: Path, line: int, row: dict[str, str | None], dataset: FaceData) -> int:
    image = _integer(path, line, "sample_id", row["sample_id"])
    if image >= len(dataset):
        raise DataError(f"{path}: line {line}: there is no image {image}; the data have {len(dataset)}")
    if row.get("label"):
        listed, label = _integer(path, line, "label", row["label"]), int(dataset.labels[image])
        if listed != label:
            raise DataError(
                f"{path}: line {line}: image {image} has label {listed} there and {label} in the data; the table is of "
                "other data"
            )
    return image


def _integer(path: Path, line: int, column: str, text: str | None) -> int:
    text = (text or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise DataError(f"{path}: line {line}: {column} must be a number from 0 on, got {text[:40]!r}")
    return int(text)


def _number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else ""
