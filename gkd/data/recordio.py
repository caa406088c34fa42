"""Face data in a RecordIO file (.rec), as the public training sets come, read without MXNet.

The file is read record by record where it lies. Its index is kept in a hidden file beside it after the first time
(`.<stem>.gkd-index`, and the labels in `.<stem>.gkd-labels`), and mapped into memory: all processes share it, and
opening takes no time. See `record_cache`, also for the one change of a .rec that it cannot see.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from gkd.core.errors import DataError
from gkd.data.face_data import fingerprint_of
from gkd.data.record_cache import cache_path, load_arrays, save_arrays, stamp_of
from gkd.data.record_index import Int64s, open_index
from gkd.data.record_labels import labels_from_ranges, read_labels
from gkd.data.record_layout import check_end, find_images, have_ids
from gkd.data.record_reader import RecordReader
from gkd.data.record_writer import RecordWriter, sidecar_path

__all__ = ["RecordFile", "RecordWriter"]

_MAX_LABEL = 1 << 24
_NUM_PROBES = 256
_MIN_CACHED_LABELS = 1 << 16


class RecordFile:
    """The images of a .rec file, by ascending key.

    With a header record (key 0) the images are the keys before the identity records; without one every record is an
    image. The .idx beside the file is used where there is one; else the file is walked through once.

    Attributes:
        path: the file.
        identity_names: the names beside the file (`<stem>.identities.txt`), or None.

    Raises:
        DataError: missing, empty, a text file, truncated, an index that does not fit, or counts in the header record
            that the file does not bear out. Damage in one record shows when that record is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stamp = stamp_of(self.path, self.path.with_suffix(".idx"))
        self._reader = RecordReader(self.path)
        index = open_index(self.path, self._reader.size, self._stamp)
        check_end(self._reader, index)
        self._reader.has_ids = have_ids(self._reader, index)
        first, stop = find_images(self._reader, index)
        self._keys = index.keys[first:stop]
        self._offsets: Int64s = index.offsets[first:stop]
        # Where the record after each image starts; none for one that is the last by its key.
        self._next_offsets: Int64s = index.offsets[first + 1 : stop + 1]
        self._identity_offsets: Int64s = index.offsets[stop:]
        # Labels lie below it.
        self._label_bound = _MAX_LABEL

    def __len__(self) -> int:
        return len(self._offsets)

    @cached_property
    def keys(self) -> Int64s:
        """int64 (N,), the key of each image, ascending."""
        return np.asarray(self._keys, dtype=np.int64) if isinstance(self._keys, np.ndarray) else _numbers(self._keys)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """The encoded image `index` and its label.

        Raises:
            IndexError: no such image.
            DataError: the record is damaged, has no image, has an unfit label, or is not the one that the index names.
        """
        if not 0 <= index < len(self._offsets):
            raise IndexError(f"{self.path}: no image {index}; there are {len(self)}")
        start = self._offsets.item(index)
        end = self._next_offsets.item(index) if index < len(self._next_offsets) else self._reader.size
        found = self._reader.read_plain(self._keys[index], start, end - start)
        body, label = self._read_any(index) if found is None else found
        if not body:
            raise DataError(f"{self.describe(index)}: the record has no image")
        return body, self._label(label, index)

    def will_need(self, indices: Int64s) -> None:
        """Tell the system which images are read next, so that it fetches them from the disk together."""
        ordered = np.sort(indices)
        ordered = ordered[(ordered >= 0) & (ordered < len(self._next_offsets))]
        self._reader.will_need(self._offsets[ordered], self._next_offsets[ordered])

    @cached_property
    def num_identities(self) -> int:
        """The largest label + 1.

        Raises:
            DataError: a label that is no whole number from 0, or a damaged record.
        """
        num_records = len(self._identity_offsets)
        is_in_order = num_records > 0 and self._are_labels_in_order(num_records)
        self._label_bound = num_records if is_in_order else int(self.labels.max()) + 1
        return self._label_bound

    @cached_property
    def labels(self) -> Int64s:
        """int64 (N,), the label of every image, read-only: by the identity records, else from the heads of all images.

        Raises:
            DataError: a label that is no whole number from 0, or a damaged record.
        """
        cache = cache_path(self.path, "labels")
        labels = self._cached_labels(cache)
        if labels is None:
            labels = self._labels_of_identities()
            labels = self._labels_of_heads() if labels is None else labels
            if len(labels) >= _MIN_CACHED_LABELS and save_arrays(cache, self._stamp, {"labels": labels}):
                mapped = self._cached_labels(cache)
                labels = labels if mapped is None else mapped
        labels.flags.writeable = False
        return labels

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
        return self._reader.where(int(self._keys[index]), int(self._offsets[index]))

    def _read_any(self, index: int) -> tuple[bytes, float]:
        record = self._reader.read(int(self._keys[index]), int(self._offsets[index]))
        return record.body, record.labels[0]

    def _label(self, value: float, index: int) -> int:
        if 0 <= value < self._label_bound:
            label = int(value)
            if label == value:
                return label
        if self._label_bound <= value < _MAX_LABEL and value == int(value):
            raise DataError(
                f"{self.describe(index)}: label {int(value)}, but the file has {self._label_bound} identities"
            )
        raise self._unfit_label(value, index)

    def _unfit_label(self, value: float, index: int) -> DataError:
        return DataError(
            f"{self.describe(index)}: label {value}, but a whole number from 0 below {_MAX_LABEL:,} is needed"
        )

    def _are_labels_in_order(self, num_identities: int) -> bool:
        """Whether labels rise from 0 to `num_identities` - 1, as probes over the whole file show."""
        try:
            labels = [self[int(index)][1] for index in self._probes(_NUM_PROBES)]
        except DataError:
            return False  # the caller then reads every label, and tells of what is damaged
        return labels[0] == 0 and labels[-1] == num_identities - 1 and labels == sorted(labels)

    def _probes(self, number: int) -> Int64s:
        return np.unique(np.linspace(0, len(self) - 1, number).astype(np.int64))

    def _cached_labels(self, cache: Path) -> Int64s | None:
        labels = (load_arrays(cache, self._stamp) or {}).get("labels")
        if labels is None or len(labels) != len(self) or labels.min() < 0 or labels.max() >= _MAX_LABEL:
            return None
        return labels

    def _labels_of_identities(self) -> Int64s | None:
        """Labels by the ranges of the identity records, where probes over the file bear them out."""
        if not (isinstance(self._keys, range) and self._keys.start == 1):
            return None
        labels = labels_from_ranges(self._reader.read_at, self._reader.size, len(self), self._identity_offsets)
        if labels is None:
            return None
        changes = np.flatnonzero(np.diff(labels))
        some = changes[:: max(len(changes) // _NUM_PROBES, 1)]
        probes = np.unique(np.concatenate([self._probes(_NUM_PROBES), some, some + 1]))
        try:
            is_right = all(self[int(index)][1] == labels[index] for index in probes)
        except DataError:
            return None  # reading every label tells of what is damaged
        return labels if is_right else None

    def _labels_of_heads(self) -> Int64s:
        try:
            labels = read_labels(self._reader.read_at, self._reader.size, self._keys, self._offsets)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        with np.errstate(invalid="ignore"):
            unfit = np.flatnonzero(~((labels >= 0) & (labels < _MAX_LABEL) & (labels == np.floor(labels))))
        if len(unfit):
            raise self._unfit_label(float(labels[unfit[0]]), int(unfit[0]))
        return labels.astype(np.int64)


def _numbers(keys: range) -> Int64s:
    return np.arange(keys.start, keys.stop, dtype=np.int64)
