"""Checks a folder with a sub-folder of images for each identity."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gkd.data.check.decoding import Images, check_images, most_common_size, read_image_file
from gkd.data.check.duplicates import find_duplicates
from gkd.data.check.faults import Faults
from gkd.data.image_folder import FaceFolder


def check_folder(path: str | Path, num_workers: int | None = None) -> tuple[FaceFolder, Faults]:
    """Check every image below `path`: it decodes, has the common size, and is there once.

    Raises:
        DataError: no such folder, or one without identities; see `FaceFolder`.
    """
    path = Path(path)
    faces, faults = FaceFolder(path), Faults(path)
    images = check_images(_Paths(faces), read_image_file, num_workers)
    for bad in images.bad:
        faults.add(bad.kind, bad.what, _place(faces, bad.image))
    _report_sizes(faces, images, faults)
    good = np.flatnonzero(images.sizes[:, 0] > 0)
    for found in find_duplicates(images.digests[good], faces.labels[good]):
        index, first = int(good[found.image]), int(good[found.first])
        kind = "duplicate" if found.is_same_label else "duplicate-across"
        what = f"the image is the same as {_place(faces, first)[1:]}"
        faults.add(kind, what, _place(faces, index), is_warning=found.is_same_label)
    return faces, faults


class _Paths:
    """The images' paths, a slice at a time: a list of them all would take hundreds of bytes an image."""

    def __init__(self, faces: FaceFolder) -> None:
        self._faces = faces

    def __len__(self) -> int:
        return len(self._faces)

    def __getitem__(self, chunk: slice) -> list[Path]:
        return [Path(self._faces.describe(index)) for index in range(*chunk.indices(len(self)))]


def _report_sizes(faces: FaceFolder, images: Images, faults: Faults) -> None:
    size = most_common_size(images)
    is_other = (images.sizes[:, 0] > 0) & np.any(images.sizes != (size or (0, 0)), axis=1)
    for index in np.flatnonzero(is_other).tolist():
        assert size is not None
        height, width = images.sizes[index]
        what = f"the image is {height}x{width} pixels, most are {size[0]}x{size[1]}"
        faults.add("size", what, _place(faces, index))


def _place(faces: FaceFolder, index: int) -> str:
    return f"/{Path(faces.describe(index)).relative_to(faces.path)}"
