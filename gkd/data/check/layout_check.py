"""Which records of a .rec are images, and whether its header and identity records bear out what they say.

R records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.data.check.faults import Faults
from gkd.data.check.scan import Records, Walk

_FLOAT32_EXACT = 1 << 24
_MAX_RANGES = 20

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass
class Layout:
    """What each record is.

    Attributes:
        is_image: bool (R,).
        has_header: whether the file has, or had, a header record and identity records.
        ranges: int64 (C, 2), the keys [start, end) of each identity record that can be right.
    """

    is_image: Bools
    has_header: bool
    ranges: Int64s


def find_layout(walk: Walk, keys: Int64s, faults: Faults) -> Layout:
    """Tell images from the header and the identity records, and check these."""
    records = walk.records
    is_image = records["body"] > 0
    is_range = (records["body"] == 0) & (records["flag"] == 2)
    is_header = is_range & (keys == 0)
    # A damaged header leaves the identity records, which no other layout has.
    has_header = bool(is_header.any() or is_range.any())
    is_identity = is_range & ~is_header
    for place in np.flatnonzero(~is_image & ~is_range):
        kind, what = "no-image", "the record has no image"
        if records["body"][place] < 0:
            kind, what = "head", f"the record announces {records['flag'][place]} labels, but is too short for them"
        faults.add_record(kind, int(keys[place]), int(records["offset"][place]), what)
    ranges = np.empty((0, 2), np.int64)
    if has_header:
        limit = _check_header(records, is_header, keys, is_image, is_identity, faults)
        ranges = _check_ranges(records, is_identity, keys, limit, faults)
    return Layout(is_image, has_header, ranges)


def describe_keys(keys: Int64s) -> str:
    """Ascending keys, runs of them as `first-last`; at most 20 runs."""
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 2) != 1)
    ends = [*(starts[1:] - 1).tolist(), len(keys) - 1]
    runs = [
        f"{keys[start]}" if start == end else f"{keys[start]}-{keys[end]}"
        for start, end in zip(starts.tolist(), ends, strict=True)
    ]
    more = f" and {len(runs) - _MAX_RANGES} more runs" if len(runs) > _MAX_RANGES else ""
    return ", ".join(runs[:_MAX_RANGES]) + more


def _check_header(
    records: Records, is_header: Bools, keys: Int64s, is_image: Bools, is_identity: Bools, faults: Faults
) -> int:
    """Check the counts; returns the key at which identity records begin."""
    last = int(keys[is_image].max(initial=0)) + 1
    if not is_header.any():
        faults.add("header", "the header record, key 0, is missing", " at byte 0", key=0, start=0)
        return last
    header = records[np.argmax(is_header)]
    stop, total = float(header["label"]), float(header["second"])
    if not (1 < stop <= total < float(1 << 53) and stop == int(stop) and total == int(total)):
        faults.add_record("header", 0, int(header["offset"]), f"it says [{stop}, {total}], which cannot be counts")
        return last
    if stop >= _FLOAT32_EXACT or total >= _FLOAT32_EXACT:
        faults.add("header", "counts above 2^24 are rounded in the header and not checked", is_warning=True)
        return last
    _check_present(keys[is_image], 1, int(stop), "images", faults)
    _check_present(keys[is_identity], int(stop), int(total), "identity records", faults)
    return int(stop)


def _check_present(keys: Int64s, start: int, stop: int, what: str, faults: Faults) -> None:
    expected = np.arange(start, stop)
    missing = expected[~np.isin(expected, keys)]
    if len(missing):
        text = f"the header says that keys {start} to {stop - 1} are {what}; missing: {describe_keys(missing)}"
        faults.add("missing", text, key=int(missing[0]))
    beyond = np.unique(keys[(keys >= 0) & ((keys < start) | (keys >= stop))])
    if len(beyond):
        text = f"the header says that keys {start} to {stop - 1} are {what}; there are others: {describe_keys(beyond)}"
        faults.add("header", text, key=int(beyond[0]))


def _check_ranges(records: Records, is_identity: Bools, keys: Int64s, limit: int, faults: Faults) -> Int64s:
    places = np.flatnonzero(is_identity)
    starts = records["label"][places].astype(np.float64)
    ends = records["second"][places].astype(np.float64)
    slack = 0.0 if limit <= _FLOAT32_EXACT else float(np.spacing(np.float32(limit)))
    with np.errstate(invalid="ignore"):
        is_right = (starts >= 1) & (starts <= ends) & (ends <= limit + slack)
        is_right &= (starts == np.floor(starts)) & (ends == np.floor(ends))
    for place in places[~is_right]:
        record: Any = records[place]
        what = f"the identity record says keys [{record['label']}, {record['second']}) of {limit - 1} images"
        faults.add_record("identity", int(keys[place]), int(record["offset"]), what)
    ranges = np.stack([starts[is_right], ends[is_right]], axis=1).astype(np.int64)
    order = np.argsort(ranges[:, 0], kind="stable")
    return _apart(ranges[order], records[places[is_right][order]], keys[places[is_right][order]], faults)


def _apart(ranges: Int64s, records: Records, keys: Int64s, faults: Faults) -> Int64s:
    """The ranges that share no key with another; of those that do, one is damaged, and none can be a witness."""
    overlaps = np.flatnonzero(ranges[1:, 0] < ranges[:-1, 1])
    for place in overlaps:
        (start, end), other = ranges[place + 1], ranges[place]
        what = f"the identity record says keys [{start}, {end}), key {keys[place]} says [{other[0]}, {other[1]})"
        faults.add_record("identity", int(keys[place + 1]), int(records["offset"][place + 1]), what)
    is_apart = np.ones(len(ranges), dtype=np.bool_)
    is_apart[overlaps] = is_apart[overlaps + 1] = False
    return ranges[is_apart]
