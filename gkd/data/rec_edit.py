"""Makes a .rec of others: several merged, some of its people, or its images in random order."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gkd.core.errors import ConfigError, DataError
from gkd.core.progress import progress
from gkd.data.identities import Faces, Identity, find_identities, images_by_label, open_faces, read_image, read_labels
from gkd.data.image_header import image_size
from gkd.data.people_writing import Written, find_sources, write_people
from gkd.data.record_index import Int64s
from gkd.data.record_writer import RecordWriter

_log = logging.getLogger(__name__)
_WINDOW_BYTES = 1 << 29
_FIRST_WINDOW = 256
_MAX_WINDOW = 1 << 17


def merge(sources: Sequence[str | Path], out_rec: str | Path, *, by_name: bool = False) -> Written:
    """Write the images of `sources`, one after the other, into one .rec.

    The people of each set follow those of the sets before it. Where a name is in two sets, all names get the set's
    number in front (`1_ann`, `2_ann`), since the same name need not be the same person; where only some sets have
    names, labels stand for those of the others.

    Args:
        sources: .rec files or folders of identities.
        by_name: the same name in two sets is one person; people are then sorted by name.

    Raises:
        ConfigError: fewer than two sources, or the target is one of them.
        DataError: a damaged image, sets of images of different sizes, or `by_name` where names are unknown.
    """
    if len(sources) < 2:
        raise ConfigError(f"merging needs at least 2 sources, got {len(sources)}")
    faces = [_open(path, out_rec) for path in sources]
    _require_one_size(faces)
    if by_name:
        _require_names(faces)
        people = find_identities(faces)
        return write_people(out_rec, people, [str(person.key) for person in people])
    groups = [[Identity(label, ((item, images),)) for label, images in images_by_label(item)] for item in faces]
    return write_people(out_rec, [person for group in groups for person in group], _joint_names(faces, groups))


def subset(
    source: str | Path,
    out_rec: str | Path,
    *,
    num_identities: int | None = None,
    min_images: int = 1,
    max_images: int | None = None,
    seed: int = 0,
) -> Written:
    """Write some of the people of `source`, and some of each one's images, into a .rec.

    People and images are drawn by the SHA-256 of (seed, name or label) and (seed, name or label, place among the
    person's images): the smallest are taken, so a larger subset holds the smaller one. Their order stays.

    Args:
        num_identities: people to draw; all where None.
        min_images: people with fewer are left out before drawing.
        max_images: images of each to draw; all where None.

    Raises:
        ConfigError: a number out of its range, more people than there are, or the target is the source.
        DataError: a damaged image.
    """
    _check_numbers(num_identities, min_images, max_images)
    faces = _open(source, out_rec)
    names = faces.identity_names
    people = [
        Identity(label if names is None else names[label], ((faces, images),))
        for label, images in images_by_label(faces)
        if len(images) >= min_images
    ]
    people = _draw(people, num_identities, seed, min_images)
    if max_images is not None:
        people = [_draw_images(person, max_images, seed) for person in people]
    return write_people(out_rec, people, None if names is None else [str(person.key) for person in people])


def shuffle(source: str | Path, out_rec: str | Path, *, seed: int = 0) -> Written:
    """Write the images of `source` in random order into a plain .rec, without a header, labels as they are.

    The images are collected in windows of 512 MiB, each read in the order of the source.

    Raises:
        ConfigError: the target is the source.
        DataError: a damaged image.
    """
    faces = _open(source, out_rec)
    labels = read_labels(faces)
    source_of = find_sources(faces)
    order = np.random.default_rng(seed).permutation(len(faces)).astype(np.int64)
    images = progress(_windows(faces, order), "shuffling", total=len(faces))
    with RecordWriter(
        out_rec, layout="plain", identity_names=faces.identity_names, with_list=source_of is not None
    ) as writer:
        for index, encoded in images:
            writer.write(int(labels[index]), encoded, "" if source_of is None else source_of(index))
    return Written(len(faces), faces.num_identities)


def _windows(faces: Faces, order: Int64s) -> Iterator[tuple[int, bytes]]:
    """Index and image in the given order, read window by window by ascending index."""
    start, size = 0, _FIRST_WINDOW
    while start < len(order):
        window = order[start : start + size]
        images = {int(index): read_image(faces, int(index)) for index in np.sort(window)}
        for index in window:
            yield int(index), images[int(index)]
        start += len(window)
        mean_bytes = sum(len(encoded) for encoded in images.values()) // len(window)
        size = int(np.clip(_WINDOW_BYTES // mean_bytes, 1, _MAX_WINDOW))


def _open(path: str | Path, out_rec: str | Path) -> Faces:
    if Path(path).resolve() == Path(out_rec).resolve():
        raise ConfigError(f"{out_rec}: is a source as well as the target; name another target")
    return open_faces(path)


def _require_one_size(faces: Sequence[Faces]) -> None:
    sizes = [image_size(read_image(item, 0)) for item in faces]
    for item, size in zip(faces, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(
                f"{item.path}: its first image has size {size} (height, width), but that of {faces[0].path} has "
                f"{sizes[0]}; bring the images to one size first (`prepare.py unpack`, then `pack --size`)"
            )


def _require_names(faces: Sequence[Faces]) -> None:
    for item in faces:
        if item.identity_names is None:
            raise DataError(
                f"{item.path}: has no identity names, so --by-name cannot merge it; leave --by-name out, or put its "
                "names into an .identities.txt beside it"
            )


def _joint_names(faces: Sequence[Faces], groups: Sequence[Sequence[Identity]]) -> list[str] | None:
    """The names of all people, by the new labels."""
    if all(item.identity_names is None for item in faces):
        return None
    lists = [[_name(item, int(person.key)) for person in group] for item, group in zip(faces, groups, strict=True)]
    names = [name for each in lists for name in each]
    if len(set(names)) == len(names):
        return names
    _log.warning("the same name is in two sets: all names get their set's number in front; see --by-name")
    return [f"{number}_{name}" for number, each in enumerate(lists, start=1) for name in each]


def _name(faces: Faces, label: int) -> str:
    return f"{label:06d}" if faces.identity_names is None else faces.identity_names[label]


def _check_numbers(num_identities: int | None, min_images: int, max_images: int | None) -> None:
    if num_identities is None and min_images <= 1 and max_images is None:
        raise ConfigError("a subset needs --identities, --min-images above 1, or --max-images")
    for option, value in (("identities", num_identities), ("min-images", min_images), ("max-images", max_images)):
        if value is not None and value < 1:
            raise ConfigError(f"--{option} must be at least 1, got {value}")


def _rank(seed: int, *keys: object) -> bytes:
    return hashlib.sha256(" ".join(str(key) for key in (seed, *keys)).encode()).digest()


def _draw(people: list[Identity], num_identities: int | None, seed: int, min_images: int) -> list[Identity]:
    wanted = len(people) if num_identities is None else num_identities
    if not 1 <= wanted <= len(people):
        raise ConfigError(
            f"--identities {wanted}: {len(people)} identities have at least {min_images} images; ask for fewer, or "
            "lower --min-images"
        )
    order = sorted(range(len(people)), key=lambda index: _rank(seed, people[index].key))
    return [people[index] for index in sorted(order[:wanted])]


def _draw_images(person: Identity, max_images: int, seed: int) -> Identity:
    ((faces, images),) = person.places
    order = sorted(range(len(images)), key=lambda index: _rank(seed, person.key, index))
    return Identity(person.key, ((faces, images[sorted(order[:max_images])]),))
