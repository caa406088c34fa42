"""Whether the labels of a .rec are whole, dense, and agree with its identity records, its .lst and its `property`.

N images, in the order of their keys.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.core.files import GIB, read_bounded
from gkd.data.check.faults import Faults
from gkd.data.check.layout_check import describe_keys

MAX_LABEL = 1 << 24
_MAX_PROPERTY_BYTES = 1 << 16
_MAX_LST_BYTES = 16 * GIB
_FLOAT32_EXACT = 1 << 24

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class LabelCheck:
    """Checks the labels of the images with these keys, offsets and labels, each (N,).

    Attributes:
        is_usable: bool (N,), false where a label is no class number, or where the other images of the same identity
            record outvote it.
    """

    def __init__(self, keys: Int64s, offsets: Int64s, labels: npt.NDArray[np.float32], faults: Faults) -> None:
        self._keys, self._offsets, self._faults = keys, offsets, faults
        with np.errstate(invalid="ignore"):
            self.is_usable: Bools = (labels >= 0) & (labels < MAX_LABEL) & (labels == np.floor(labels))
        for place in np.flatnonzero(~self.is_usable):
            self._add(
                "label", int(place), f"label {labels[place]}; a whole number from 0 below {MAX_LABEL:,} is needed"
            )
        self.labels: Int64s = np.where(self.is_usable, labels, -1).astype(np.int64)

    def check_ranges(self, ranges: Int64s) -> None:
        """Each identity record's images must have one label, which no other identity record's images have."""
        if len(self._keys) and self._keys[-1] >= _FLOAT32_EXACT:
            return  # such keys are rounded in identity records
        bounds = np.searchsorted(self._keys, ranges)
        owners: dict[int, int] = {}
        for (start, stop), (first, end) in zip(bounds.tolist(), ranges.tolist(), strict=True):
            found = self.labels[start:stop][self.is_usable[start:stop]]
            if not len(found):
                continue
            if np.any(found != found[0]):
                self._outvote(start, stop, f"keys {first} to {end - 1}")
                continue
            label = int(found[0])
            if label in owners:
                what = f"label {label} belongs to the identity record of keys from {owners[label]} as well"
                self._add("identity", start, what)
            owners.setdefault(label, first)

    def check_dense(self) -> None:
        """Every label from 0 to the largest must have an image."""
        found = np.unique(self.labels[self.is_usable])
        if not len(found):
            return
        missing = np.setdiff1d(np.arange(int(found[-1]) + 1), found, assume_unique=True)
        if len(missing):
            what = f"{len(missing)} of the labels 0 to {found[-1]} have no image: {describe_keys(missing)}"
            self._faults.add("missing-label", what)

    def check_lst(self, path: Path) -> None:
        """The labels that the .lst (`key<TAB>label<TAB>…<TAB>path`) gives must be the records'."""
        content = read_bounded(path, _MAX_LST_BYTES)
        is_listed = np.zeros(len(self._keys), dtype=np.bool_)
        for number, line in enumerate(content.splitlines(), start=1):
            fields = line.split(b"\t")
            try:
                key, label = int(fields[0]), float(fields[1])
            except (ValueError, IndexError):
                text = f"not a key, a label and a path: {line[:60]!r}"
                self._faults.add("list", text, f" {path.name} line {number}", is_warning=True)
                continue
            place = int(np.searchsorted(self._keys, key)) if abs(key) < 1 << 62 else len(self._keys)
            if place == len(self._keys) or self._keys[place] != key:
                self._faults.add("list", f"{path.name} lists key {key}, which is no image", f" key {key}", key=key)
                continue
            is_listed[place] = True
            if self.is_usable[place] and label != self.labels[place]:
                self._add("list", place, f"label {self.labels[place]}, but {path.name} says {label:g}")
        for unlisted in np.flatnonzero(~is_listed):
            self._add("list", int(unlisted), f"is missing from {path.name}", is_warning=True)

    def check_property(self, path: Path, size: tuple[int, int] | None) -> None:
        """`property` (`classes,height,width`) should say what the images do; it may be that of another file beside."""
        try:
            line = (read_bounded(path, _MAX_PROPERTY_BYTES).decode("ascii").splitlines() or [""])[0]
            classes, height, width = (int(value) for value in line.split(","))
        except (ValueError, DataError) as error:
            self._faults.add(
                "property", f"`property` beside it cannot be read as classes,height,width ({error})", is_warning=True
            )
            return
        found = int(self.labels.max(initial=-1)) + 1
        if classes != found:
            self._faults.add(
                "property", f"`property` says {classes} classes, the largest label + 1 is {found}", is_warning=True
            )
        if size is not None and (height, width) != size:
            what = f"`property` says {height}x{width} pixels, the images are {size[0]}x{size[1]}"
            self._faults.add("property", what, is_warning=True)

    def _outvote(self, start: int, stop: int, where: str) -> None:
        """Images whose label fewer than half of their identity record's images share."""
        values, counts = np.unique(self.labels[start:stop][self.is_usable[start:stop]], return_counts=True)
        best = int(values[np.argmax(counts)])
        is_clear = 2 * int(counts.max()) > int(counts.sum())
        for place in range(start, stop):
            if self.is_usable[place] and self.labels[place] != best:
                what = f"label {self.labels[place]}, but its identity record ({where}) has images of label {best}"
                self._add("identity", place, what)
                self.is_usable[place] = not is_clear

    def _add(self, kind: str, place: int, what: str, *, is_warning: bool = False) -> None:
        self._faults.add_record(kind, int(self._keys[place]), int(self._offsets[place]), what, is_warning=is_warning)
