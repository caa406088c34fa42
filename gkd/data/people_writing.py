"""Writing people from one set of faces or several into a .rec, with the names of their files where those are known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd.core.errors import DataError
from gkd.core.progress import progress
from gkd.data.identities import Faces, Identity, read_image
from gkd.data.image_folder import FaceFolder
from gkd.data.record_list import ImageList, list_path
from gkd.data.record_writer import RecordWriter

# The file that image i comes from.
SourceOf = Callable[[int], str]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """What a task wrote."""

    num_images: int
    num_identities: int


def find_sources(faces: Faces) -> SourceOf | None:
    """The files of a folder's images, or those in the list beside a .rec; None where there is no list that fits."""
    if isinstance(faces, FaceFolder):
        return faces.source
    path = list_path(faces.path)
    if not path.exists():
        return None
    try:
        images = ImageList(path)
        images.check(faces.keys, faces.labels)
    except DataError as error:
        _log.warning("%s; the names of files are not carried over", error)
        return None
    return images.__getitem__


def write_people(out_rec: str | Path, people: Sequence[Identity], names: Sequence[str] | None) -> Written:
    """Write `people` with labels 0, 1, 2 …, each one's images in their order.

    The list of files is written where the files of all sets are known. Its folders are the `names`; without names,
    they are those of the set where there is one set, else labels.

    Raises:
        DataError: a damaged image, or names that do not fit.
    """
    sets = {id(faces): faces for person in people for faces, _ in person.places}
    sources = {key: find_sources(faces) for key, faces in sets.items()}
    known = {key: source for key, source in sources.items() if source is not None}
    has_list = len(known) == len(sets)
    keeps_paths = names is None and len(sets) == 1
    num_images = sum(len(person) for person in people)
    with RecordWriter(out_rec, identity_names=names, with_list=has_list) as writer:
        files = _FileNames(names)
        for label, faces, index in progress(_places(people), "writing", total=num_images):
            source = known[id(faces)](index) if has_list else ""
            writer.write(label, read_image(faces, index), source if keeps_paths else files.name(label, source))
    return Written(num_images, len(people))


class _FileNames:
    """`<identity>/<file>`, with a number in front of a file whose name the identity has already."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names
        self._label = -1
        self._taken: set[str] = set()

    def name(self, label: int, source: str) -> str:
        if label != self._label:
            self._label = label
            self._taken.clear()
        file = original = source.rpartition("/")[2]
        number = 1
        while file in self._taken:
            number += 1
            file = f"{number}_{original}"
        self._taken.add(file)
        return f"{label:06d}/{file}" if self._names is None else f"{self._names[label]}/{file}"


def _places(people: Sequence[Identity]) -> Iterator[tuple[int, Faces, int]]:
    for label, person in enumerate(people):
        for faces, images in person.places:
            for index in images:
                yield label, faces, int(index)
