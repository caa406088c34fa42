"""Which records of a .rec file are images, and whether what lies in it agrees with its index and its header."""

from __future__ import annotations

import logging

import numpy as np

from gkd.core.errors import DataError
from gkd.data.record_format import Record, locate_parts, read_payload, unpack_record
from gkd.data.record_index import RecordIndex
from gkd.data.record_reader import RecordReader

_log = logging.getLogger(__name__)
_FLOAT32_EXACT = 1 << 24
_NUM_ID_PROBES = 16


def check_end(reader: RecordReader, index: RecordIndex) -> None:
    """A truncated file shows at its last record; an index that stops early is worth a warning.

    Raises:
        DataError: the last record is damaged or cut.
    """
    try:
        _, end = locate_parts(reader.read_at, int(index.offsets[index.last]), reader.size)
    except DataError as error:
        raise DataError(f"{reader.path}: key {index.keys[index.last]}, {error}") from error
    if end != reader.size:
        _log.warning(
            "%s: the .idx ends at byte %d of %d; the records after it are not used", reader.path, end, reader.size
        )


def have_ids(reader: RecordReader, index: RecordIndex) -> bool:
    """Whether the records carry their keys. Some tools leave one and the same id in all of them."""
    probes = np.unique(np.linspace(0, len(index) - 1, _NUM_ID_PROBES).astype(np.int64))
    ids = set()
    for place in probes:
        try:
            payload = read_payload(reader.read_at, int(index.offsets[place]), reader.size)
            ids.add(unpack_record(payload).key)
        except DataError:
            continue  # damage shows, with its place, when that record is read
    return len(ids) > 1 or (len(probes) == 1 and ids == {int(index.keys[0])})


def find_images(reader: RecordReader, index: RecordIndex) -> tuple[int, int]:
    """The places of the first image and of the record after the last one. It takes a few reads, however large the file.

    Raises:
        DataError: no images, or counts in the header record that the file does not bear out.
    """
    header = _read_header(reader, index)
    first, stop = (0, len(index)) if header is None else (1, _find_stop(reader, header, index))
    if first == stop:
        raise DataError(f"{reader.path}: holds no images")
    return first, stop


def _read_header(reader: RecordReader, index: RecordIndex) -> Record | None:
    if index.keys[0] != 0:
        return None
    record = reader.read(0, int(index.offsets[0]))
    return record if record.flag > 0 and not record.body else None


def _find_stop(reader: RecordReader, header: Record, index: RecordIndex) -> int:
    """The place of the first identity record.

    The header's N + 1 is a float32: beyond 2^24 it is off by less than its spacing, so the records around it
    decide. Identity records have no body, images have one.
    """
    claimed = header.labels[0]
    if not (1 < claimed < float(1 << 62) and claimed == int(claimed)):
        raise DataError(
            f"{reader.where(0, int(index.offsets[0]))}: the header says that images end before key {claimed}"
        )
    slack = int(np.spacing(np.float32(claimed))) if claimed >= _FLOAT32_EXACT else 0
    stop = index.place_of(int(claimed) + slack)
    while stop > 1 and _is_identity(reader, index, stop - 1, int(claimed) + slack):
        stop -= 1
    _check_count(reader, int(claimed), slack, stop, index)
    return stop


def _is_identity(reader: RecordReader, index: RecordIndex, place: int, limit: int) -> bool:
    record = reader.read(int(index.keys[place]), int(index.offsets[place]))
    # The two may be equal, where rounding to float32 has made them so.
    is_range = record.flag == 2 and 1 <= record.labels[0] <= record.labels[1] <= limit
    return not record.body and is_range


def _check_count(reader: RecordReader, claimed: int, slack: int, stop: int, index: RecordIndex) -> None:
    keys, offsets = index.keys, index.offsets
    if stop < len(keys) and reader.read(int(keys[stop]), int(offsets[stop])).body:
        raise DataError(
            f"{reader.where(int(keys[stop]), int(offsets[stop]))}: an image, but the header says that images "
            f"end before key {claimed}; the file is damaged"
        )
    if abs(int(keys[stop - 1]) + 1 - claimed) <= slack and (slack > 0 or stop == claimed):
        return
    if stop < len(keys) and keys[stop] == stop:
        _log.warning(
            "%s: the header says %d images, its identity records follow %d", reader.path, claimed - 1, stop - 1
        )
        return
    raise DataError(
        f"{reader.path}: the header says {claimed - 1} images, but {stop - 1} are there; the .rec or the .idx is "
        "truncated or damaged, get both again"
    )
