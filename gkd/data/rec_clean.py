"""Writes a set of faces without some of its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.data.identities import Faces, Identity, images_by_label
from gkd.data.people_writing import Written, write_people
from gkd.data.record_index import Int64s
from gkd.data.recordio import RecordFile

_MOST_NAMED = 5

Bools = npt.NDArray[np.bool_]


def lost_identities(faces: Faces, is_left_out: Bools) -> Int64s:
    """The labels that have images, but none that is not left out."""
    before, after = (np.bincount(labels, minlength=1) for labels in (faces.labels, faces.labels[~is_left_out]))
    after = np.pad(after, (0, len(before) - len(after)))
    return np.flatnonzero((before > 0) & (after == 0))


def write_clean(faces: Faces, out_rec: str | Path, is_left_out: Bools, *, drop_empty: bool = False) -> Written:
    """Write the images that are not left out into a .rec, their bytes untouched, sorted by label.

    Labels are 0, 1, 2 … in the old order; they change only where identities go. Names go along.

    Args:
        is_left_out: (n,).
        drop_empty: leave out identities that lose all their images, instead of refusing.

    Raises:
        ConfigError: the target exists or is the source, or nothing is left. DataError: a damaged image, or identities
            that would lose all their images.
    """
    check_target(faces, Path(out_rec))
    lost = lost_identities(faces, is_left_out)
    if len(lost) and not drop_empty:
        raise DataError(
            f"{faces.path}: {len(lost)} identities would lose all their images: {_named(faces, lost)}; let them go "
            "with --drop-empty (the labels after them then move up), or leave out fewer images"
        )
    if len(lost):
        _check_property(faces, Path(out_rec))
    people = list(_kept_people(faces, is_left_out))
    if not people:
        raise ConfigError(f"{faces.path}: nothing would be left; leave out fewer images")
    return write_people(
        out_rec, people, None if faces.identity_names is None else [str(person.key) for person in people]
    )


def check_target(faces: Faces, out: Path) -> None:
    """Make sure that `out` can be written without a loss.

    Raises:
        ConfigError: it is no .rec, the source itself, or there already.
    """
    if out.suffix != ".rec":
        raise ConfigError(f"{out}: the name must end in .rec")
    if out.resolve() == faces.path.resolve():
        raise ConfigError(f"{out}: is the source as well as the target; name another target")
    if out.exists():
        raise ConfigError(f"{out}: exists; name another file, or remove it first")


def _kept_people(faces: Faces, is_left_out: Bools) -> Iterator[Identity]:
    names = faces.identity_names
    for label, images in images_by_label(faces):
        kept = images[~is_left_out[images]]
        if len(kept):
            yield Identity(label if names is None else names[label], ((faces, kept),))


def _check_property(faces: Faces, out: Path) -> None:
    """A file `property` counts the identities of the .rec files beside it, so those must have equally many."""
    path = out.with_name("property")
    if isinstance(faces, RecordFile) and out.parent.resolve() == faces.path.parent.resolve() and path.exists():
        raise ConfigError(
            f"{out}: has fewer identities than {faces.path}, and would replace the {path} of both; write into another "
            "folder"
        )


def _named(faces: Faces, labels: Int64s) -> str:
    names = faces.identity_names
    shown = [str(label) if names is None else names[label] for label in labels[:_MOST_NAMED].tolist()]
    return ", ".join(shown) + (" …" if len(labels) > _MOST_NAMED else "")
