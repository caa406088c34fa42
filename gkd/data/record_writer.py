"""Writes .rec files: in the layout of the public face sets, or plain, for images in any order."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np

from gkd.core.errors import DataError
from gkd.core.files import atomic_write
from gkd.data.image_header import image_size
from gkd.data.left_overs import lock, remove_left_overs
from gkd.data.record_format import frame, pack_record
from gkd.data.record_list import list_line, list_path

Layout = Literal["insightface", "plain"]

_log = logging.getLogger(__name__)
_MAX_LABEL = 1 << 24
_BUFFER_BYTES = 1 << 20


def sidecar_path(path: Path) -> Path:
    """Where the identities' names of a .rec file stand, one a line."""
    return path.with_suffix(".identities.txt")


def float32_below(count: int) -> float:
    """The largest float32 that is not above `count`; `count` itself to 2^24."""
    nearest = np.float32(count)
    return float(np.nextafter(nearest, np.float32(0)) if int(nearest) > count else nearest)


class RecordWriter:
    """A context manager that writes `path` (.rec), its .idx, and `property`, all renamed into place at success.

    In the layout "insightface" key 0 holds the counts, keys 1..N the images, the keys after them one record an
    identity with its range of keys. Counts and ranges are float32 in this format: above 2^24 they are rounded down, so
    that a reader which trusts them takes no identity record for an image. In the layout "plain" every key from 0 is an
    image, and labels may come in any order.

    In memory are kept 8 bytes an image and 8 an identity.

    Attributes:
        num_images: images written so far.

    Args:
        path: the .rec file.
        layout: "insightface" or "plain".
        identity_names: the identities' names by label, written beside it as `<stem>.identities.txt`. The list may
            grow until the writer is closed.
        with_list: also write `<stem>.lst` (`key<TAB>label<TAB>source`), from the `source` of each image.

    Raises:
        DataError: `path` does not end in .rec, or a name does not fit a line of a text file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layout: Layout = "insightface",
        identity_names: Sequence[str] | None = None,
        with_list: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".rec":
            raise DataError(f"{self.path}: the name must end in .rec")
        _check_names(self.path, identity_names)
        self._is_plain = layout == "plain"
        self._identity_names = identity_names
        self._with_list = with_list
        self._starts = array("q")
        self._offsets = array("q")
        self._position = 0
        self.num_images = 0
        self._max_label = -1
        self._image_size: tuple[int, int] | None = None
        self._stack = ExitStack()
        self._file: BinaryIO | None = None
        self._list: BinaryIO | None = None

    def __enter__(self) -> Self:
        remove_left_overs(self.path)
        with ExitStack() as stack:
            # Left in the opposite order: the list appears after the .rec that it belongs to.
            if self._with_list:
                temporary_list = stack.enter_context(atomic_write(list_path(self.path)))
                self._list = stack.enter_context(temporary_list.open("wb", buffering=_BUFFER_BYTES))
                lock(self._list)
            temporary = stack.enter_context(atomic_write(self.path))
            self._file = stack.enter_context(temporary.open("wb", buffering=_BUFFER_BYTES))
            lock(self._file)
            self._stack = stack.pop_all()
        if not self._is_plain:
            self._append(0, (0.0, 0.0), b"")
        return self

    def write(self, label: int, encoded: bytes, source: str = "") -> None:
        """Append an image.

        Args:
            source: the file that it comes from, for the list.

        Raises:
            DataError: a label that the layout or the format does not allow, or an empty or too long image.
        """
        label, key = int(label), len(self._offsets)
        self._check(label, encoded)
        if label > self._max_label:
            self._max_label = label
            self._starts.append(key)
        if self._image_size is None:
            self._image_size = image_size(encoded)
        self._append(key, (float(label),), encoded)
        self.num_images += 1
        if self._list is not None:
            self._list.write(list_line(key, label, source))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            self._finish()
        self._write_sidecars()

    def _check(self, label: int, encoded: bytes) -> None:
        previous = self._max_label
        if not self._is_plain and (label not in (previous, previous + 1) or label < 0):
            raise DataError(
                f"{self.path}: image {self.num_images} has label {label} after label {previous}; write the images "
                "sorted by label, with labels 0, 1, 2 … and none left out"
            )
        if not 0 <= label < _MAX_LABEL:
            raise DataError(
                f"{self.path}: image {self.num_images} has label {label}, but the format keeps labels as float32, "
                f"exact from 0 to below {_MAX_LABEL:,}"
            )
        if not encoded:
            raise DataError(f"{self.path}: image {self.num_images} (label {label}) is empty; leave it out")

    def _finish(self) -> None:
        num_identities = self._max_label + 1
        if not self._starts:
            raise DataError(f"{self.path}: no images were written")
        names = self._identity_names
        if names is not None and len(names) != num_identities:
            raise DataError(f"{self.path}: {len(names)} identity names for {num_identities} identities")
        _check_names(self.path, names)
        if not self._is_plain:
            self._write_counts()
        # A reader between the renames, or after a crash there, must not pair the new .rec with old companions.
        if self.path.exists():
            list_path(self.path).unlink(missing_ok=True)
        self.path.with_suffix(".idx").unlink(missing_ok=True)
        sidecar_path(self.path).unlink(missing_ok=True)

    def _write_counts(self) -> None:
        num_keys = len(self._offsets)
        for start, end in pairwise([*self._starts, num_keys]):
            self._append(len(self._offsets), (float32_below(start), float32_below(end)), b"")
        counts = float32_below(num_keys), float32_below(num_keys + len(self._starts))
        if counts[0] != num_keys:
            _log.warning(
                "%s: its %d images are more than its header can count exactly (a float32); the header says %d, so "
                "readers that trust it miss the last %d images; this project reads all",
                self.path,
                num_keys - 1,
                int(counts[0]) - 1,
                num_keys - int(counts[0]),
            )
        assert self._file is not None
        self._file.seek(0)
        self._file.write(frame(pack_record(0, counts, b"")))

    def _append(self, key: int, labels: tuple[float, ...], body: bytes) -> None:
        if self._file is None:
            raise DataError(f"{self.path}: open the writer with `with` before writing")
        framed = frame(pack_record(key, labels, body))
        self._file.write(framed)
        self._offsets.append(self._position)
        self._position += len(framed)

    def _write_sidecars(self) -> None:
        with atomic_write(self.path.with_suffix(".idx")) as temporary, temporary.open("w", encoding="ascii") as file:
            lock(file)
            file.writelines(f"{key}\t{offset}\n" for key, offset in enumerate(self._offsets))
        if self._image_size is None:
            _log.warning("%s: its first image is of no known format, so no `property` file is written", self.path)
        else:
            height, width = self._image_size
            _write_text(self.path.with_name("property"), f"{self._max_label + 1},{height},{width}\n")
        if self._identity_names is not None:
            _write_text(sidecar_path(self.path), "".join(f"{name}\n" for name in self._identity_names))


def _check_names(path: Path, names: Sequence[str] | None) -> None:
    for name in names or ():
        if not name or len(name.splitlines()) != 1 or name != name.strip():
            raise DataError(f"{path}: the identity name {name!r} is empty, or has spaces or line breaks at its ends")
        if not name.isascii() and not _is_utf8(name):
            raise DataError(f"{path}: the identity name {name!r} is not UTF-8; rename the identity")


def _is_utf8(name: str) -> bool:
    with suppress(UnicodeEncodeError):
        name.encode()
        return True
    return False


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
