"""Face data in a folder with one sub-folder of images for each identity."""

from __future__ import annotations

import logging
import os
import stat
from functools import cached_property
from pathlib import Path

import numpy as np

from gkd.core.errors import DataError
from gkd.core.files import GIB, read_bounded
from gkd.data.face_data import fingerprint_of
from gkd.data.record_index import Int64s

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

_log = logging.getLogger(__name__)


class FaceFolder:
    """The images below `path/<identity>/`, sorted by identity and file name; labels follow the sorted identities.

    Hidden files and folders, and files that are no images by their suffix, are left out. In memory are kept the files'
    names and 8 bytes an image.

    Attributes:
        path: the folder.

    Raises:
        DataError: no such folder, no identities, images outside the sub-folders, or no images at all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        identities = _list_identities(self.path)
        files = {name: _list_images(self.path / name) for name in identities}
        for name in identities:
            if not files[name]:
                _log.warning("%s: identity %s has no images and is left out", self.path, name)
        self._names = tuple(name for name in identities if files[name])
        if not self._names:
            raise DataError(f"{self.path}: no sub-folder holds an image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self._files = [file for name in self._names for file in files[name]]
        self._labels: Int64s = np.repeat(
            np.arange(len(self._names), dtype=np.int64), [len(files[name]) for name in self._names]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image `index` and its label.

        Raises:
            IndexError: no such image.
            DataError: the file is gone, cannot be read, or is empty.
        """
        if not 0 <= index < len(self._files):
            raise IndexError(f"{self.path}: no image {index}; there are {len(self._files)}")
        encoded = _read_file(self.describe(index))
        if not encoded:
            raise DataError(f"{self.describe(index)}: the image is empty; replace or remove it")
        return encoded, int(self._labels[index])

    @property
    def labels(self) -> Int64s:
        """int64 (N,), the label of every image."""
        return self._labels

    @property
    def num_identities(self) -> int:
        """The number of identities that have images."""
        return len(self._names)

    @property
    def identity_names(self) -> tuple[str, ...]:
        """The names of the sub-folders, by label."""
        return self._names

    @cached_property
    def fingerprint(self) -> str:
        """What the set holds, as a hash; see `fingerprint_of`."""
        return fingerprint_of(self)

    def describe(self, index: int) -> str:
        """The path of image `index`."""
        return os.path.join(self.path, self._names[int(self._labels[index])], self._files[index])  # noqa: PTH118

    def source(self, index: int) -> str:
        """The path of image `index` below the folder, `<identity>/<file>`."""
        return f"{self._names[int(self._labels[index])]}/{self._files[index]}"


def _read_file(path: str) -> bytes:
    """The content of a regular file, with three system calls where `read_bounded` needs more and 1 GiB of addresses."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return read_bounded(path, GIB)  # tells what is wrong
    try:
        status = os.fstat(descriptor)
        content = os.read(descriptor, status.st_size + 1) if _is_plain(status) else b""
    except OSError:
        content = b""
    finally:
        os.close(descriptor)
    return content if content and len(content) == status.st_size else read_bounded(path, GIB)


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size < GIB


def _list_identities(path: Path) -> list[str]:
    if not path.exists():
        raise DataError(f"{path}: no such folder")
    if not path.is_dir():
        raise DataError(f"{path}: is a file, but a folder with one sub-folder for each identity is needed")
    identities, images = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_image(entry):
                images.append(entry.name)
            elif not entry.name.startswith(".") and entry.is_dir():
                identities.append(entry.name)
    if images:
        raise DataError(
            f"{path}: image {min(images)} lies outside the identities; put each person's images into a sub-folder"
        )
    if not identities:
        raise DataError(f"{path}: has no sub-folders; put each person's images into a sub-folder")
    return sorted(identities)


def _list_images(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry))


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
    return suffix in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
