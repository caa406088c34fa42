"""People and their images, over one set of faces or several."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from gkd.core.errors import DataError
from gkd.data.image_folder import FaceFolder
from gkd.data.record_index import Int64s
from gkd.data.recordio import RecordFile

Faces = RecordFile | FaceFolder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """One person: the images of a label, or of a name in several sets.

    Attributes:
        key: the name, or the label where names are unknown.
        places: the sets that show the person, and which of each set's images do.
    """

    key: str | int
    places: tuple[tuple[Faces, Int64s], ...]

    def __len__(self) -> int:
        return sum(len(images) for _, images in self.places)

    def __getitem__(self, index: int) -> bytes:
        """The encoded image `index`.

        Raises:
            IndexError: no such image. DataError: it cannot be read.
        """
        rest = index
        for faces, images in self.places:
            if 0 <= rest < len(images):
                return read_image(faces, int(images[rest]))
            rest -= len(images)
        raise IndexError(f"identity {self.key}: no image {index}; there are {len(self)}")


def open_faces(path: str | Path) -> Faces:
    """A .rec file, or a folder with a sub-folder for each identity.

    Raises:
        DataError: as `RecordFile` and `FaceFolder`.
    """
    path = Path(path)
    return RecordFile(path) if path.suffix == ".rec" else FaceFolder(path)


def read_image(faces: Faces, index: int) -> bytes:
    """The encoded image `index` of `faces`.

    Raises:
        DataError: it cannot be read, with what to do.
    """
    with _advising(faces):
        return faces[index][0]


def read_labels(faces: Faces) -> Int64s:
    """The label of every image of `faces`, (N,).

    Raises:
        DataError: a label that cannot be read, with what to do.
    """
    with _advising(faces):
        return faces.labels


def find_identities(sources: Sequence[Faces]) -> list[Identity]:
    """Everybody who has images in `sources`, by ascending name, or by ascending label where names are unknown.

    The same name in two sets is one identity. Labels without images are left out.

    Raises:
        DataError: several sets of which one has no names, two identities of one set with the same name, or an image
            that cannot be read.
    """
    _require_names(sources)
    places: dict[str | int, list[tuple[Faces, Int64s]]] = {}
    for faces in sources:
        for label, images in images_by_label(faces):
            key = label if faces.identity_names is None else faces.identity_names[label]
            places.setdefault(key, []).append((faces, images))
    # Keys are all names or all labels, so they can be compared.
    return [Identity(key, tuple(places[key])) for key in sorted(places)]


@contextmanager
def _advising(faces: Faces) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        if isinstance(faces, FaceFolder):
            raise
        raise DataError(f"{error}; `prepare.py verify --repair` writes a file without the damaged records") from error


def _require_names(sources: Sequence[Faces]) -> None:
    for faces in sources:
        names = faces.identity_names
        if names is None:
            if len(sources) > 1:
                raise DataError(
                    f"{faces.path}: has no identity names, so it cannot be merged with other sets; give folders, or "
                    ".rec files with their .identities.txt beside them"
                )
            continue
        for name, following in pairwise(sorted(names)):
            if name == following:
                raise DataError(f"{faces.path}: two identities are named {name!r}; give each its own name")


def images_by_label(faces: Faces) -> list[tuple[int, Int64s]]:
    """Each label that has images, ascending, with their indices in the set's order.

    Raises:
        DataError: a label that cannot be read.
    """
    labels = read_labels(faces)
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    if len(found) < faces.num_identities:
        _log.warning(
            "%s: %d of its %d identities have no images and are left out",
            faces.path,
            faces.num_identities - len(found),
            faces.num_identities,
        )
    return list(zip(found.tolist(), np.split(order, starts[1:]), strict=True))
