"""Face data in a RecordIO file (.rec), as the public training sets come, read without MXNet.

The file is read record by record where it lies; only its index (16 bytes an image) is kept in memory.
"""

from __future__ import annotations

import logging
import os
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gkd.core.errors import DataError
from gkd.data.face_data import fingerprint_of
from gkd.data.record_format import MAGIC, Record, locate_parts, read_payload, unpack_record
from gkd.data.record_index import Int64s, read_idx, read_labels, scan
from gkd.data.record_writer import RecordWriter, sidecar_path

__all__ = ["RecordFile", "RecordWriter"]

_log = logging.getLogger(__name__)
_FLOAT32_EXACT = 1 << 24
_MAX_LABEL = 1 << 24
_NUM_PROBES = 256


class RecordFile:
    """The images of a .rec file, by ascending key.

    With a header record (key 0) the images are the keys before the identity records; without one every record is an
    image. The .idx beside the file is used where there is one; else the file is walked through once.

    Attributes:
        path: the file.
        keys: int64 (N,), the key of each image, ascending.
        identity_names: the names beside the file (`<stem>.identities.txt`), or None.

    Raises:
        DataError: missing, empty, a text file, truncated, an index that does not fit, or counts in the header record
            that the file does not bear out. Damage in one record shows when that record is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._descriptor: int | None = None
        self._size = _check_file(self.path)
        idx = self.path.with_suffix(".idx")
        keys, offsets = read_idx(idx, self._size) if idx.exists() else scan(self.path, self._size)
        self._check_end(keys, offsets)
        self._has_ids = _has_ids(self, keys, offsets)
        header = self._read_header(keys, offsets)
        first, stop = (0, len(keys)) if header is None else (1, self._find_stop(header, keys, offsets))
        if first == stop:
            raise DataError(f"{self.path}: holds no images")
        self._num_identity_records = len(keys) - stop
        self.keys: Int64s = keys[first:stop]
        self._offsets: Int64s = offsets[first:stop]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image `index` and its label.

        Raises:
            IndexError: no such image.
            DataError: the record is damaged, has no image, has an unfit label, or is not the one that the index names.
        """
        if not 0 <= index < len(self.keys):
            raise IndexError(f"{self.path}: no image {index}; there are {len(self.keys)}")
        record = self._read(int(self.keys[index]), int(self._offsets[index]))
        if not record.body:
            raise DataError(f"{self.describe(index)}: the record has no image")
        return record.body, self._label(record.labels[0], index)

    @cached_property
    def num_identities(self) -> int:
        """The largest label + 1.

        Raises:
            DataError: a label that is no whole number from 0, or a damaged record.
        """
        if self._num_identity_records and self._are_labels_in_order(self._num_identity_records):
            return self._num_identity_records
        return int(self.labels.max()) + 1

    @cached_property
    def labels(self) -> Int64s:
        """int64 (N,), the label of every image, from the heads of the records alone.

        Raises:
            DataError: a label that is no whole number from 0, or a damaged record.
        """
        labels = read_labels(self.path, self._size, self.keys, self._offsets)
        with np.errstate(invalid="ignore"):
            unfit = np.flatnonzero(~((labels >= 0) & (labels < _MAX_LABEL) & (labels == np.floor(labels))))
        if len(unfit):
            raise self._unfit_label(float(labels[unfit[0]]), int(unfit[0]))
        return labels.astype(np.int64)

    @cached_property
    def identity_names(self) -> tuple[str, ...] | None:
        """The identities' names by label, or None where no such file lies beside the .rec.

        Raises:
            DataError: the number of names is not the number of identities.
        """
        path = sidecar_path(self.path)
        if not path.exists():
            return None
        names = tuple(path.read_text(encoding="utf-8").splitlines())
        if len(names) != self.num_identities:
            raise DataError(f"{path}: {len(names)} names, but {self.path.name} has {self.num_identities} identities")
        return names

    @cached_property
    def fingerprint(self) -> str:
        """What the set holds, as a hash; see `fingerprint_of`."""
        return fingerprint_of(self)

    def describe(self, index: int) -> str:
        """The file, key and byte offset of image `index`."""
        return self._where(int(self.keys[index]), int(self._offsets[index]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def _where(self, key: int, offset: int) -> str:
        return f"{self.path}: key {key} at byte {offset}"

    def _read_at(self, offset: int, length: int) -> bytes:
        # pread keeps no position, so a descriptor may be shared with forked processes.
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return os.pread(self._descriptor, length, offset)

    def _read(self, key: int, offset: int) -> Record:
        try:
            record = unpack_record(read_payload(self._read_at, offset, self._size))
        except DataError as error:
            raise DataError(f"{self.path}: key {key}, {error}") from error
        except OSError as error:
            raise DataError(f"{self._where(key, offset)}: cannot be read: {error.strerror}") from error
        if self._has_ids and record.key != key:
            raise DataError(
                f"{self._where(key, offset)}: the record there has id {record.key}; the .idx belongs to another file, "
                "delete it and the .rec is indexed by walking through it"
            )
        return record

    def _label(self, value: float, index: int) -> int:
        if not (0 <= value < _MAX_LABEL and value == int(value)):
            raise self._unfit_label(value, index)
        label = int(value)
        known = self.__dict__.get("num_identities")
        if known is not None and label >= known:
            raise DataError(f"{self.describe(index)}: label {label}, but the file has {known} identities")
        return label

    def _unfit_label(self, value: float, index: int) -> DataError:
        return DataError(
            f"{self.describe(index)}: label {value}, but a whole number from 0 below {_MAX_LABEL:,} is needed"
        )

    def _check_end(self, keys: Int64s, offsets: Int64s) -> None:
        """A truncated file shows at its last record; an index that stops early is worth a warning."""
        last = int(np.argmax(offsets))
        try:
            _, end = locate_parts(self._read_at, int(offsets[last]), self._size)
        except DataError as error:
            raise DataError(f"{self.path}: key {keys[last]}, {error}") from error
        if end != self._size:
            _log.warning(
                "%s: the .idx ends at byte %d of %d; the records after it are not used", self.path, end, self._size
            )

    def _read_header(self, keys: Int64s, offsets: Int64s) -> Record | None:
        if keys[0] != 0:
            return None
        record = self._read(0, int(offsets[0]))
        return record if record.flag > 0 and not record.body else None

    def _find_stop(self, header: Record, keys: Int64s, offsets: Int64s) -> int:
        """The place of the first identity record.

        The header's N + 1 is a float32: beyond 2^24 it is off by up to half its spacing, so the records around it
        decide. Identity records have no body, images have one.
        """
        claimed = header.labels[0]
        if not (1 < claimed < float(1 << 62) and claimed == int(claimed)):
            raise DataError(f"{self._where(0, int(offsets[0]))}: the header says that images end before key {claimed}")
        slack = int(np.spacing(np.float32(claimed))) if claimed >= _FLOAT32_EXACT else 0
        stop = int(np.searchsorted(keys, int(claimed) + slack))
        while stop > 1 and self._is_identity(int(keys[stop - 1]), int(offsets[stop - 1]), int(claimed) + slack):
            stop -= 1
        self._check_count(int(claimed), slack, stop, keys, offsets)
        return stop

    def _is_identity(self, key: int, offset: int, limit: int) -> bool:
        record = self._read(key, offset)
        # The two may be equal, where rounding to float32 has made them so.
        is_range = record.flag == 2 and 1 <= record.labels[0] <= record.labels[1] <= limit
        return not record.body and is_range

    def _check_count(self, claimed: int, slack: int, stop: int, keys: Int64s, offsets: Int64s) -> None:
        if stop < len(keys) and self._read(int(keys[stop]), int(offsets[stop])).body:
            raise DataError(
                f"{self._where(int(keys[stop]), int(offsets[stop]))}: an image, but the header says that images "
                f"end before key {claimed}; the file is damaged"
            )
        if abs(int(keys[stop - 1]) + 1 - claimed) <= slack and (slack > 0 or stop == claimed):
            return
        if stop < len(keys) and keys[stop] == stop:
            _log.warning(
                "%s: the header says %d images, its identity records follow %d", self.path, claimed - 1, stop - 1
            )
            return
        raise DataError(
            f"{self.path}: the header says {claimed - 1} images, but {stop - 1} are there; the .rec or the .idx is "
            "truncated or damaged, get both again"
        )

    def _are_labels_in_order(self, num_identities: int) -> bool:
        """Whether labels rise from 0 to `num_identities` - 1, as probes over the whole file show."""
        probes = np.unique(np.linspace(0, len(self) - 1, _NUM_PROBES).astype(np.int64))
        try:
            labels = [self[int(index)][1] for index in probes]
        except DataError:
            return False  # the caller then reads every label, and tells of what is damaged
        return labels[0] == 0 and labels[-1] == num_identities - 1 and labels == sorted(labels)


def _check_file(path: Path) -> int:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: is not a file; a .rec file is needed")
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise DataError(f"{path}: is empty; get it again")
    if head != MAGIC:
        raise DataError(f"{path}: not a RecordIO file: at byte 0 it has {head!r}, not the magic {MAGIC.hex()}")
    return path.stat().st_size


def _has_ids(file: RecordFile, keys: Int64s, offsets: Int64s) -> bool:
    """Whether the records carry their keys. Some tools leave one and the same id in all of them."""
    probes = np.unique(np.linspace(0, len(keys) - 1, 16).astype(np.int64))
    ids = set()
    for place in probes:
        try:
            payload = read_payload(file._read_at, int(offsets[place]), file._size)
            ids.add(unpack_record(payload).key)
        except DataError:
            continue  # damage shows, with its place, when that record is read
    return len(ids) > 1 or (len(probes) == 1 and ids == {int(keys[0])})
