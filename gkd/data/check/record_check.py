"""Checks a .rec file whole: structure, .idx, header, images, labels, duplicates.

What it cannot see: the format has no checksums, so a changed bit inside an image shows only if the decoder trips over
it (see `decoding`); and a file that ends exactly between two records is whole unless a header, .idx or .lst tells of
more.

R records, N images.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gkd.data.check.decoding import Images, ReadRecord, check_images, decoder_complains, most_common_size
from gkd.data.check.duplicates import find_duplicates
from gkd.data.check.faults import Faults
from gkd.data.check.index_check import find_keys
from gkd.data.check.label_check import LabelCheck
from gkd.data.check.layout_check import Layout, find_layout
from gkd.data.check.scan import Records, Walk, walk

_log = logging.getLogger(__name__)

Int64s = npt.NDArray[np.int64]


class Lost(NamedTuple):
    """A record, or a stretch of bytes, that a repair cannot bring back. -1: unknown."""

    key: int
    start: int
    end: int
    label: float
    reason: str


@dataclass
class CheckedRecords:
    """A checked .rec.

    Attributes:
        path: the file.
        size: its bytes.
        faults: what was found.
        records: the usable images (N,), of type RECORD, by ascending key.
        keys: their keys, int64 (N,).
        labels: their labels, int64 (N,).
        has_header: whether the file has the layout with a header and identity records.
        image_size: (height, width) of most images, where any is good.
        lost: what is not usable.
    """

    path: Path
    size: int
    faults: Faults
    records: Records
    keys: Int64s
    labels: Int64s
    has_header: bool
    image_size: tuple[int, int] | None
    lost: list[Lost]

    def describe(self) -> str:
        """The counts, on one line."""
        layout = "header and identity records" if self.has_header else "no header record"
        size = f", {self.image_size[0]}x{self.image_size[1]} pixels" if self.image_size else ""
        num_identities = len(np.unique(self.labels))
        return f"{len(self.keys):,} usable images of {num_identities:,} identities{size}, {layout}"


def check_records(path: str | Path, num_workers: int | None = None) -> CheckedRecords:
    """Check the file `path`.

    Memory is about 100 bytes a record, so 4 GiB for 40 million; the images themselves are read one by one.

    Raises:
        DataError: no .rec file at all, or one that cannot be read. ConfigError: fewer than one worker.
    """
    path = Path(path)
    walked, faults = walk(path), Faults(path)
    lost = _report_structure(walked, faults)
    keys = find_keys(walked, path.with_suffix(".idx"), faults)
    layout = find_layout(walked, keys, faults)
    lost += _lose_non_images(walked, keys, layout)
    order = _by_key(keys, layout)
    records, image_keys = walked.records[order], keys[order]
    labels = LabelCheck(image_keys, records["offset"], records["label"], faults)
    labels.check_ranges(layout.ranges)
    images = _decode(path, walked.size, records, num_workers)
    is_usable = labels.is_usable & _report_images(images, records, image_keys, faults)
    size = most_common_size(images)
    labels.check_dense()
    _check_sidecars(path, labels, size, faults)
    _report_duplicates(images, image_keys, labels.labels, records, faults)
    lost += _lose_images(records[~is_usable], image_keys[~is_usable], images, np.flatnonzero(~is_usable))
    return CheckedRecords(
        path=path,
        size=walked.size,
        faults=faults,
        records=records[is_usable],
        keys=image_keys[is_usable],
        labels=labels.labels[is_usable],
        has_header=layout.has_header,
        image_size=size,
        lost=sorted(lost, key=lambda item: item.start),
    )


def _report_structure(walked: Walk, faults: Faults) -> list[Lost]:
    lost = []
    for damage in walked.damages:
        place = f" bytes {damage.start} to {damage.end - 1}"
        faults.add("structure", damage.what, place, start=damage.start, end=damage.end)
        lost.append(Lost(-1, damage.start, damage.end, float("nan"), damage.what))
    for offset in walked.bad_padding:
        faults.add("padding", "the padding after the record is not zero", f" at byte {offset}", start=offset)
    return lost


def _by_key(keys: Int64s, layout: Layout) -> Int64s:
    """The places of the images, by ascending key."""
    places = np.flatnonzero(layout.is_image)
    return places[np.argsort(keys[places], kind="stable")]


def _decode(path: Path, size: int, records: Records, num_workers: int | None) -> Images:
    if not decoder_complains():
        _log.warning("this build of OpenCV does not tell of damaged pixels: fewer damaged images will be found")
    # In file order, which disks read fastest.
    order = np.argsort(records["offset"], kind="stable")
    found = check_images(records["offset"][order], ReadRecord(path, size), num_workers)
    digests, sizes = np.empty_like(found.digests), np.empty_like(found.sizes)
    digests[order], sizes[order] = found.digests, found.sizes
    bad = [bad._replace(image=int(order[bad.image])) for bad in found.bad]
    return Images(digests, sizes, bad, order[found.trailed].tolist())


def _report_images(images: Images, records: Records, keys: Int64s, faults: Faults) -> npt.NDArray[np.bool_]:
    """bool (N,), whether the image decodes."""
    for bad in images.bad:
        faults.add_record(bad.kind, int(keys[bad.image]), int(records["offset"][bad.image]), bad.what)
    for image in images.trailed:
        what = "bytes follow the end of the image"
        faults.add_record("trailing", int(keys[image]), int(records["offset"][image]), what, is_warning=True)
    size = most_common_size(images)
    is_good = images.sizes[:, 0] > 0
    for place in np.flatnonzero(is_good & np.any(images.sizes != (size or (0, 0)), axis=1)):
        assert size is not None
        height, width = images.sizes[place]
        what = f"the image is {height}x{width} pixels, most are {size[0]}x{size[1]}"
        faults.add_record("size", int(keys[place]), int(records["offset"][place]), what)
    return is_good


def _check_sidecars(path: Path, labels: LabelCheck, size: tuple[int, int] | None, faults: Faults) -> None:
    if path.with_suffix(".lst").exists():
        labels.check_lst(path.with_suffix(".lst"))
    if path.with_name("property").exists():
        labels.check_property(path.with_name("property"), size)
    if not path.with_suffix(".idx").exists():
        faults.add(
            "index-missing", f"no {path.with_suffix('.idx').name} beside it: other readers need one", is_warning=True
        )


def _report_duplicates(images: Images, keys: Int64s, labels: Int64s, records: Records, faults: Faults) -> None:
    places = np.flatnonzero((images.sizes[:, 0] > 0) & (labels >= 0))
    for found in find_duplicates(images.digests[places], labels[places]):
        place, first = int(places[found.image]), int(places[found.first])
        what = f"the image (label {labels[place]}) is the same as that of key {keys[first]} (label {labels[first]})"
        kind = "duplicate" if found.is_same_label else "duplicate-across"
        offset = int(records["offset"][place])
        faults.add_record(kind, int(keys[place]), offset, what, is_warning=found.is_same_label)


def _lose_non_images(walked: Walk, keys: Int64s, layout: Layout) -> list[Lost]:
    records = walked.records
    is_range = (records["body"] == 0) & (records["flag"] == 2)
    places = np.flatnonzero(~is_range & ~layout.is_image).tolist()
    return [_lose(records, place, int(keys[place]), "the record has no image") for place in places]


def _lose_images(records: Records, keys: Int64s, images: Images, places: Int64s) -> list[Lost]:
    reasons = {bad.image: bad.what for bad in images.bad}
    return [
        _lose(records, row, int(keys[row]), reasons.get(int(place), "its label cannot be used"))
        for row, place in enumerate(places)
    ]


def _lose(records: Records, place: int, key: int, reason: str) -> Lost:
    start = int(records["offset"][place])
    return Lost(key, start, start + int(records["size"][place]), float(records["label"][place]), reason)
