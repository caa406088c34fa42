"""Writes .rec files in the layout of the public face sets: a header, the images, a record for each identity."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from gkd.core.errors import DataError
from gkd.core.files import atomic_write
from gkd.data.image_header import image_size
from gkd.data.record_format import frame, pack_record

_log = logging.getLogger(__name__)


def sidecar_path(path: Path) -> Path:
    """Where the identities' names of a .rec file stand, one a line."""
    return path.with_suffix(".identities.txt")


class RecordWriter:
    """A context manager that writes `path` (.rec), its .idx, and `property`, all renamed into place at success.

    Key 0 holds the counts, keys 1..N the images, the keys after them one record an identity with its range of keys.
    Counts and keys are float32 in this format, so above 2^24 only every other whole number can be written.

    Args:
        path: the .rec file.
        identity_names: the identities' names by label, written beside it as `<stem>.identities.txt`.
    """

    def __init__(self, path: str | Path, *, identity_names: Sequence[str] | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix != ".rec":
            raise DataError(f"{self.path}: the name must end in .rec")
        _check_names(self.path, identity_names)
        self._identity_names = identity_names
        self._starts: list[int] = []
        self._offsets: list[int] = []
        self._image_size: tuple[int, int] | None = None
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.path))
            self._file = stack.enter_context(temporary.open("wb"))
            self._stack = stack.pop_all()
        self._append(0, (0.0, 0.0), b"")
        return self

    def write(self, label: int, encoded: bytes) -> None:
        """Append an image.

        Raises:
            DataError: labels that are not 0, 1, 2 … with each identity's images together, an empty or too long image,
                or a key that float32 cannot hold.
        """
        label, key, previous = int(label), len(self._offsets), len(self._starts) - 1
        if label not in (previous, previous + 1) or label < 0:
            raise DataError(
                f"{self.path}: image {key - 1} has label {label} after label {previous}; write the images sorted by "
                "label, with labels 0, 1, 2 … and none left out"
            )
        if not encoded:
            raise DataError(f"{self.path}: image {key - 1} (label {label}) is empty; leave it out")
        if label > previous:
            self._require_exact(key)
            self._starts.append(key)
        if self._image_size is None:
            self._image_size = image_size(encoded)
        self._append(key, (float(label),), encoded)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            self._finish()
        self._write_sidecars()

    def _finish(self) -> None:
        num_keys = len(self._offsets)
        if not self._starts:
            raise DataError(f"{self.path}: no images were written")
        names = self._identity_names
        if names is not None and len(names) != len(self._starts):
            raise DataError(f"{self.path}: {len(names)} identity names for {len(self._starts)} identities")
        ends = [*self._starts[1:], num_keys]
        self._require_exact(num_keys, num_keys + len(self._starts))
        for start, end in zip(self._starts, ends, strict=True):
            self._append(len(self._offsets), (float(start), float(end)), b"")
        assert self._file is not None
        self._file.seek(0)
        self._file.write(frame(pack_record(0, (float(num_keys), float(num_keys + len(self._starts))), b"")))
        # A reader between the renames must not pair the new .rec with the old .idx.
        self.path.with_suffix(".idx").unlink(missing_ok=True)

    def _append(self, key: int, labels: tuple[float, ...], body: bytes) -> None:
        if self._file is None:
            raise DataError(f"{self.path}: open the writer with `with` before writing")
        framed = frame(pack_record(key, labels, body))
        self._offsets.append(self._file.tell())
        self._file.write(framed)

    def _write_sidecars(self) -> None:
        with atomic_write(self.path.with_suffix(".idx")) as temporary, temporary.open("w", encoding="ascii") as file:
            file.writelines(f"{key}\t{offset}\n" for key, offset in enumerate(self._offsets))
        if self._image_size is None:
            _log.warning("%s: its first image is of no known format, so no `property` file is written", self.path)
        else:
            height, width = self._image_size
            _write_text(self.path.with_name("property"), f"{len(self._starts)},{height},{width}\n")
        if self._identity_names is None:
            sidecar_path(self.path).unlink(missing_ok=True)
        else:
            _write_text(sidecar_path(self.path), "".join(f"{name}\n" for name in self._identity_names))

    def _require_exact(self, *values: int) -> None:
        for value in values:
            if int(np.float32(value)) != value:
                raise DataError(
                    f"{self.path}: key {value:,} cannot be written exactly, since this format keeps keys as float32 "
                    "(exact to 16,777,216); write fewer images into the file"
                )


def _check_names(path: Path, names: Sequence[str] | None) -> None:
    for name in names or ():
        if not name or len(name.splitlines()) != 1 or name != name.strip():
            raise DataError(f"{path}: the identity name {name!r} is empty, or has spaces or line breaks at its ends")


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
