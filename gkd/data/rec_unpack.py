"""Unpacks a .rec into a folder with one sub-folder of images for each identity."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gkd.core.errors import DataError
from gkd.core.files import atomic_write, read_bounded
from gkd.core.progress import progress
from gkd.data.identities import read_image, read_labels
from gkd.data.image_header import image_format
from gkd.data.record_index import Int64s
from gkd.data.record_list import ImageList, list_path, unsafe_name
from gkd.data.recordio import RecordFile

_log = logging.getLogger(__name__)
# Hidden, so that the folder can be used as it is.
_MARK_FILE = ".unpacked.json"
_MAX_MARK_BYTES = 1 << 12
_TEMPORARY_FILE = ".unpacking"
_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "bmp": ".bmp", "webp": ".webp"}
_MIN_LABEL_DIGITS = 6


def unpack(rec: str | Path, out: str | Path, *, use_list: bool = True) -> int:
    """Write the images of `rec` to `out`/<identity>/<file>, byte for byte; returns their number.

    Where the list of files (.lst) lies beside the .rec, they get the names that it has. Else a folder is named by the
    identity, or by its label in 6 digits, and an image by its key and the suffix of its format. All names are checked
    before anything is written. An interrupted unpacking goes on: files that are there are compared, not written.

    Args:
        use_list: use the .lst, where there is one.

    Raises:
        DataError: a damaged record, a list that does not fit, names that are unsafe or not unique, or `out` holds
            something else.
    """
    faces, out = RecordFile(rec), Path(out)
    read_labels(faces)  # damage is told before anything is written
    names = _ListedNames(faces) if use_list and list_path(faces.path).exists() else _KeyNames(faces)
    with _claimed(out, {"fingerprint": faces.fingerprint, "names": names.digest}):
        made: set[str] = set()
        for index in progress(range(len(faces)), "unpacking"):
            encoded = read_image(faces, index)
            name = names.name(index, encoded)
            folder = name.partition("/")[0]
            if folder not in made:
                (out / folder).mkdir(exist_ok=True)
                made.add(folder)
            _write_file(out, name, encoded)
    return len(faces)


class _ListedNames:
    """The names in the list beside the .rec."""

    def __init__(self, faces: RecordFile) -> None:
        try:
            self._list = ImageList(list_path(faces.path))
            self._list.check(faces.keys, faces.labels)
            self._check(faces)
        except DataError as error:
            raise DataError(f"{error}; give --no-list to name the images by their keys") from error
        self.digest = _digest(self._list[index] for index in range(len(self._list)))

    def name(self, index: int, encoded: bytes) -> str:
        return self._list[index]

    def _check(self, faces: RecordFile) -> None:
        labels_of_folders: dict[str, int] = {}
        folders_of_labels: dict[int, str] = {}
        hashes = np.empty(len(self._list), dtype=np.int64)
        for index in progress(range(len(self._list)), "checking names"):
            name, label = self._list[index], int(faces.labels[index])
            folder = self._folder_of(name, index)
            if labels_of_folders.setdefault(folder, label) != label:
                raise self._refusal(index, f"images of labels {labels_of_folders[folder]} and {label} share a folder")
            if folders_of_labels.setdefault(label, folder) != folder:
                raise self._refusal(index, f"label {label} also has the folder {folders_of_labels[label]!r}")
            hashes[index] = hash(name)
        self._check_unique(hashes)

    def _folder_of(self, name: str, index: int) -> str:
        parts = name.split("/")
        for part in parts:
            problem = unsafe_name(part)
            if problem:
                raise self._refusal(index, f"the part {part[:60]!r} {problem}")
        if len(parts) != 2:
            raise self._refusal(index, "is not of the form identity/file")
        return parts[0]

    def _check_unique(self, hashes: Int64s) -> None:
        # The names themselves of many millions of images would take gigabytes.
        order = np.argsort(hashes, kind="stable")
        repeats = np.flatnonzero(np.diff(hashes[order]) == 0)
        seen: set[str] = set()
        for index in np.unique(np.concatenate([order[repeats], order[repeats + 1]])):
            if self._list[int(index)] in seen:
                raise self._refusal(int(index), "two images have this name")
            seen.add(self._list[int(index)])

    def _refusal(self, index: int, problem: str) -> DataError:
        return DataError(f"{self._list.path}: key {self._list.keys[index]}, {self._list[index][:200]!r}: {problem}")


class _KeyNames:
    """Names made of identities' names or labels, keys, and formats."""

    def __init__(self, faces: RecordFile) -> None:
        self._faces = faces
        self._folders = faces.identity_names
        if self._folders is not None:
            _check_folders(faces, self._folders)
        # Padded, so that sorting by name keeps the order of labels and keys.
        self._label_digits = max(_MIN_LABEL_DIGITS, len(str(faces.num_identities - 1)))
        self._key_digits = len(str(int(faces.keys[-1])))
        self.digest = _digest(self._folders or ())

    def name(self, index: int, encoded: bytes) -> str:
        label, kind = int(self._faces.labels[index]), image_format(encoded)
        if kind is None:
            raise DataError(
                f"{self._faces.describe(index)}: not a JPEG, PNG, BMP or WebP image (begins with {encoded[:8]!r}); "
                "`prepare.py verify` lists such records"
            )
        folder = f"{label:0{self._label_digits}d}" if self._folders is None else self._folders[label]
        return f"{folder}/{int(self._faces.keys[index]):0{self._key_digits}d}{_SUFFIXES[kind]}"


def _check_folders(faces: RecordFile, names: tuple[str, ...]) -> None:
    where = f"{faces.path}: its identity"
    advice = "correct it in the .identities.txt beside the .rec"
    seen: set[str] = set()
    for name in names:
        problem = unsafe_name(name)
        if problem:
            raise DataError(f"{where} {name[:60]!r} cannot name a folder: the name {problem}; {advice}")
        if name in seen:
            raise DataError(f"{where} {name!r} is there twice; {advice}")
        seen.add(name)


def _digest(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\n")
    return digest.hexdigest()


@contextmanager
def _claimed(out: Path, settings: dict[str, str]) -> Iterator[None]:
    """Let `out` be new, empty, or an unpacking of the same file."""
    try:
        is_free = not out.exists() or not any(out.iterdir())
    except OSError as error:
        raise DataError(f"{out}: cannot be used as a folder: {error.strerror}") from error
    if is_free:
        with atomic_write(out / _MARK_FILE) as temporary:
            temporary.write_text(json.dumps(settings) + "\n", encoding="ascii")
    elif _read_mark(out) != settings:
        raise DataError(f"{out}: is not empty, and holds no unpacking of this file; name another folder")
    try:
        yield
    finally:
        (out / _TEMPORARY_FILE).unlink(missing_ok=True)


def _read_mark(out: Path) -> object:
    if not (out / _MARK_FILE).is_file():
        return None
    try:
        return json.loads(read_bounded(out / _MARK_FILE, _MAX_MARK_BYTES))
    except (ValueError, RecursionError):
        return None


def _write_file(out: Path, name: str, encoded: bytes) -> None:
    path, temporary = out / name, out / _TEMPORARY_FILE
    try:
        if path.exists():
            _require_same(path, encoded)
            return
        temporary.write_bytes(encoded)
        temporary.rename(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def _require_same(path: Path, encoded: bytes) -> None:
    if path.stat().st_size != len(encoded) or path.read_bytes() != encoded:
        raise DataError(f"{path}: is there with another content; remove it, or name another folder")
