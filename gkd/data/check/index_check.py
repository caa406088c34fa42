"""Which key each record of a walked .rec has, from the ids inside it and from the .idx, and where those disagree.

R records.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gkd.core.files import GIB, read_bounded
from gkd.data.check.faults import Faults
from gkd.data.check.scan import Walk

_MAX_IDX_BYTES = 4 * GIB
_LINE = re.compile(rb"(\d{1,18})\t(\d{1,18})\r?")
_MAX_KEY = 1 << 53

Int64s = npt.NDArray[np.int64]


def find_keys(walk: Walk, idx: Path, faults: Faults) -> Int64s:
    """int64 (R,), the key of each record; no two are equal.

    The id in a record is its key, unless another record has the same id or the .idx does not know it; then the .idx
    decides, then the neighbours in the file. Files whose records all bear one and the same id are keyed by the .idx,
    or else by their order.
    """
    table = _without_repeats(_read_table(idx, faults), idx, faults) if idx.exists() else None
    listed = np.full(len(walk.records), -1, np.int64) if table is None else _listed_keys(walk, table, idx, faults)
    ids = walk.records["id"]
    if not _has_ids(ids):
        return _keys_without_ids(walk, listed, faults)
    keys = np.where(ids < _MAX_KEY, ids, 0).astype(np.int64)
    keys[ids >= _MAX_KEY] = -1
    _report_disagreement(walk, keys, listed, faults)
    if table is not None:
        is_unknown = (listed >= 0) & (keys != listed) & ~np.isin(keys, table[:, 0])
        keys[is_unknown] = listed[is_unknown]
    _settle_repeats(walk, keys, listed, faults)
    return keys


def _has_ids(ids: npt.NDArray[np.uint64]) -> bool:
    return len(ids) == 1 or 2 * len(np.unique(ids)) > len(ids)


def _keys_without_ids(walk: Walk, listed: Int64s, faults: Faults) -> Int64s:
    if np.all(listed >= 0):
        return listed
    faults.add(
        "ids", "its records do not bear their keys, and the .idx lacks some: keys are the order", is_warning=True
    )
    return np.arange(len(walk.records), dtype=np.int64)


def _report_disagreement(walk: Walk, keys: Int64s, listed: Int64s, faults: Faults) -> None:
    for place in np.flatnonzero((listed >= 0) & (keys != listed)):
        record = walk.records[place]
        what = f"the .idx names this place key {listed[place]}, but the record there has id {record['id']}"
        faults.add_record("index-key", int(listed[place]), int(record["offset"]), what)
    for place in np.flatnonzero(keys < 0):
        record = walk.records[place]
        faults.add_record("id", -1, int(record["offset"]), f"the record's id {record['id']} can be no key")


def _settle_repeats(walk: Walk, keys: Int64s, listed: Int64s, faults: Faults) -> None:
    """Leave each key to the record with the best claim, and give the others keys that nobody has."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    repeated = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    homeless = np.flatnonzero(keys < 0).tolist()
    original = keys.copy()
    for key in repeated[repeated >= 0]:
        places = order[np.searchsorted(in_order, key) : np.searchsorted(in_order, key, side="right")]
        best = max(places.tolist(), key=lambda place: (_claim(original, listed, place), -place))
        what = f"the record at byte {walk.records['offset'][best]} has the same id"
        for place in places[places != best].tolist():
            faults.add_record("id", int(key), int(walk.records["offset"][place]), what)
            homeless.append(place)
    used = set(original.tolist()) if homeless else set()
    for place in sorted(homeless):
        keys[place] = _free_key(place, keys, listed, used)
        used.add(int(keys[place]))


def _free_key(place: int, keys: Int64s, listed: Int64s, used: set[int]) -> int:
    """The .idx's key for it, the one after its neighbour's, or the one after all."""
    after = int(keys[place - 1]) + 1 if place else 0
    for key in (int(listed[place]), after):
        if key >= 0 and key not in used:
            return key
    return max(used) + 1


def _claim(keys: Int64s, listed: Int64s, place: int) -> int:
    follows = place > 0 and keys[place - 1] == keys[place] - 1
    precedes = place + 1 < len(keys) and keys[place + 1] == keys[place] + 1
    return 4 * int(listed[place] == keys[place]) + int(follows) + int(precedes)


def _listed_keys(walk: Walk, table: Int64s, idx: Path, faults: Faults) -> Int64s:
    """int64 (R,), the key that the .idx gives each record, or -1."""
    offsets = walk.records["offset"]
    places = np.minimum(np.searchsorted(offsets, table[:, 1]), len(offsets) - 1)
    is_record = offsets[places] == table[:, 1]
    for key, offset in table[~is_record]:
        faults.add_record("index-offset", int(key), int(offset), f"no record starts there, but {idx.name} says so")
    listed = np.full(len(offsets), -1, np.int64)
    # Where two lines name one place the first of them stands; the other key then lacks its record.
    listed[places[is_record][::-1]] = table[is_record, 0][::-1]
    for key, offset in table[is_record][listed[places[is_record]] != table[is_record, 0]]:
        faults.add_record("index-offset", int(key), int(offset), f"{idx.name} names this place twice")
    for place in np.flatnonzero(listed < 0):
        record = walk.records[place]
        what = f"the record is missing from {idx.name}"
        faults.add_record("index-missing", int(min(record["id"], _MAX_KEY)), int(record["offset"]), what)
    return listed


def _read_table(idx: Path, faults: Faults) -> Int64s:
    """int64 (lines, 2), keys and offsets of the lines that can be read."""
    content = read_bounded(idx, _MAX_IDX_BYTES)
    num_lines = content.count(b"\n") + (not content.endswith(b"\n") and bool(content))
    # Digits, tabs and line breaks only, and a tab in each line: then all numbers can be read at once.
    if not content.translate(None, b"0123456789\t\n") and content.count(b"\t") == num_lines and num_lines:
        try:
            numbers = np.array(content.split(), dtype=np.int64) if len(content) < 1 << 24 else _parse_large(content)
            if len(numbers) == 2 * num_lines:
                return numbers.reshape(-1, 2)
        except (ValueError, OverflowError):
            pass
    rows = []
    for number, line in enumerate(content.splitlines(), start=1):
        found = _LINE.fullmatch(line)
        if found is None:
            faults.add("index-line", f"not a key, a tab and a byte offset: {line[:60]!r}", f" {idx.name} line {number}")
        else:
            rows.append((int(found[1]), int(found[2])))
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def _parse_large(content: bytes) -> Int64s:
    """All numbers of a large text, without an object for each."""
    return np.fromstring(content.decode("ascii"), dtype=np.int64, sep=" ")


def _without_repeats(table: Int64s, idx: Path, faults: Faults) -> Int64s:
    _, first = np.unique(table[:, 0], return_index=True)
    is_first = np.zeros(len(table), dtype=np.bool_)
    is_first[first] = True
    for key, offset in table[~is_first]:
        faults.add_record("index-key", int(key), int(offset), f"{idx.name} has this key more than once")
    return table[is_first]
