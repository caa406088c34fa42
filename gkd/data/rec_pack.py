"""Packs a folder of identities into a .rec, checking and resizing the images in several processes."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import atomic_write
from gkd.core.progress import progress
from gkd.data.image_fit import MAX_PIXELS, ImageFit, Size, size_of
from gkd.data.image_folder import FaceFolder
from gkd.data.left_overs import lock
from gkd.data.ordered_work import in_order
from gkd.data.record_list import unsafe_name
from gkd.data.record_writer import RecordWriter

_log = logging.getLogger(__name__)
_MAX_LISTED = 20
_NUM_PROBES = 101
_MAX_CHUNK = 64
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Packed:
    """What a pack wrote and left out."""

    num_images: int
    num_identities: int
    num_skipped: int


def pack(
    folder: str | Path,
    out_rec: str | Path,
    *,
    size: Size | None = None,
    quality: int = 95,
    decode_check: bool = False,
    num_workers: int = 1,
    on_bad: Literal["raise", "skip"] = "raise",
) -> Packed:
    """Write the images of `folder` into a .rec with its .idx, .lst, `property` and names; their bytes stay as they are.

    Every image must have a whole, known header, and all of them the size that most have.

    Args:
        size: (H, W) in pixels: images of another size are stretched to it and encoded as JPEG.
        quality: of that JPEG, 1 to 100.
        decode_check: also decode every image.
        num_workers: processes that read and check.
        on_bad: "skip" leaves bad images out, and lists them in `<stem>.skipped.csv`; "raise" stops at the first.

    Raises:
        ConfigError: a quality, size or number of workers out of its range.
        DataError: as `FaceFolder` and `RecordWriter`, a bad image, or a worker that was killed.
    """
    _check_settings(size, quality)
    out_rec = Path(out_rec)
    faces = FaceFolder(folder)
    _check_file_names(faces)
    common, mean_bytes = _probe(faces)
    check = ImageFit(faces, size or common, size is not None, quality, decode_check)
    names: list[str] = []
    skipped_csv = out_rec.with_suffix(".skipped.csv")
    with ExitStack() as stack:
        results = stack.enter_context(
            in_order(
                check,
                len(faces),
                num_workers=num_workers,
                chunk_size=int(np.clip(_CHUNK_BYTES // mean_bytes, 1, _MAX_CHUNK)),
                describe=faces.describe,
            )
        )
        bad = _BadImages(skipped_csv, faces, stack) if on_bad == "skip" else None
        writer = stack.enter_context(RecordWriter(out_rec, identity_names=names, with_list=True))
        _write_all(faces, progress(results, "packing", total=len(faces)), writer, names, bad)
    if bad is None or not bad.count:
        skipped_csv.unlink(missing_ok=True)
    return Packed(writer.num_images, len(names), 0 if bad is None else bad.finish(names))


class _BadImages:
    """Writes down what is left out. The file is written in any case; the caller drops it where nothing was bad."""

    def __init__(self, path: Path, faces: FaceFolder, stack: ExitStack) -> None:
        self.count = 0
        self._path, self._faces = path, faces
        self._first: list[str] = []
        temporary = stack.enter_context(atomic_write(path))
        # Names that are not UTF-8 are told apart by their escapes.
        file = stack.enter_context(temporary.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
        lock(file)
        self._rows = csv.writer(file)
        self._rows.writerow(("path", "reason"))

    def add(self, index: int, problem: str) -> None:
        self.count += 1
        self._rows.writerow((self._faces.source(index), problem.removeprefix(f"{self._faces.describe(index)}: ")))
        if len(self._first) < _MAX_LISTED:
            self._first.append(problem)

    def finish(self, names: list[str]) -> int:
        for problem in self._first:
            _log.warning("left out: %s", problem)
        if self.count:
            _log.warning("left out %d of %d images; %s lists them", self.count, len(self._faces), self._path)
        empty = sorted(set(self._faces.identity_names) - set(names))
        if empty:
            _log.warning("%d identities have no good image and are left out: %s …", len(empty), ", ".join(empty[:5]))
        return self.count


def _write_all(
    faces: FaceFolder,
    results: Iterator[tuple[bytes, str]],
    writer: RecordWriter,
    names: list[str],
    bad: _BadImages | None,
) -> None:
    previous = -1
    for index, (encoded, problem) in enumerate(results):
        if problem and bad is None:
            raise DataError(problem)
        if problem and bad is not None:
            bad.add(index, problem)
            continue
        label = int(faces.labels[index])
        if label != previous:
            names.append(faces.identity_names[label])
            previous = label
        # Labels are counted anew: an identity may have lost all its images.
        writer.write(len(names) - 1, encoded, faces.source(index))


def _check_settings(size: Size | None, quality: int) -> None:
    if size is not None and not (min(size) >= 1 and size[0] * size[1] <= MAX_PIXELS):
        raise ConfigError(f"a size of {size[0]}x{size[1]} pixels: from 1x1 to {MAX_PIXELS:,} pixels can be written")
    if not 1 <= quality <= 100:
        raise ConfigError(f"the JPEG quality goes from 1 to 100, got {quality}")


def _check_file_names(faces: FaceFolder) -> None:
    """Make sure that the list's lines can be read again; a file's name may hold tabs and line breaks."""
    for index in range(len(faces)):
        problem = unsafe_name(faces.source(index).partition("/")[2])
        if problem:
            raise DataError(f"{faces.describe(index)!r}: the file's name {problem}; rename it")


def _probe(faces: FaceFolder) -> tuple[Size, int]:
    """The size that most images have, and their mean number of bytes, from some images over the whole set."""
    sizes: Counter[Size] = Counter()
    num_bytes = []
    for index in np.unique(np.linspace(0, len(faces) - 1, _NUM_PROBES).astype(np.int64)):
        try:
            encoded = faces[int(index)][0]
            num_bytes.append(len(encoded))
            sizes[size_of(encoded, "")] += 1
        except DataError:
            continue  # told, with its place, when its turn comes
    common = sizes.most_common(1)[0][0] if sizes else (0, 0)
    return common, int(np.mean(num_bytes)) if num_bytes else 1
