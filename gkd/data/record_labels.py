"""The labels of many records without their images: from the heads of the records, or from the identity records."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.data.record_format import MAGIC, MAX_LENGTH, RECORD_HEAD, WHOLE, ReadAt, read_payload, unpack_record
from gkd.data.record_index import Int64s

Bools = npt.NDArray[np.bool_]

# A record of one part: its part head, its header, and the first two of its labels, where it has any.
_HEAD = np.dtype(
    [(name, "<u4") for name in ("magic", "word", "flag")]
    + [("label", "<f4"), ("id", "<u8"), ("id2", "<u8"), ("first", "<f4"), ("second", "<f4")]
)
_MAGIC = int.from_bytes(MAGIC, "little")
_BLOCK_BYTES = 1 << 22
# Where records are longer than this on average, reading only their heads is less work than reading past their images.
_LONG_RECORD = 1 << 16
_FLOAT32_EXACT = 1 << 24


def read_labels(read: ReadAt, file_size: int, keys: range | Int64s, offsets: Int64s) -> npt.NDArray[np.float32]:
    """The first label of every record, (N,), read in the order of the file.

    Raises:
        DataError: a damaged record, with its key and byte offset.
    """
    labels = np.empty(len(offsets), dtype=np.float32)
    for places, heads, is_there in _read_heads(read, offsets):
        labels[places] = np.where(heads["flag"] == 0, heads["label"], heads["first"])
        is_plain = _is_plain(heads, offsets[places], file_size) & is_there
        for place in np.arange(len(offsets))[places][~is_plain] if not is_plain.all() else ():
            labels[place] = _label_of(read, file_size, int(offsets[place]), int(keys[int(place)]))
    return labels


def labels_from_ranges(read: ReadAt, file_size: int, num_images: int, offsets: Int64s) -> Int64s | None:
    """The labels of images 1 … `num_images` where the n-th identity record gives the keys of label n; else None.

    It takes the ranges at their word, so a caller has to compare some of the labels with those of the images.

    Args:
        offsets: where the identity records start, by ascending key.
    """
    if num_images + 1 > _FLOAT32_EXACT or not len(offsets):
        return None
    starts, ends = np.empty((2, len(offsets)), dtype=np.float32)
    for places, heads, is_there in _read_heads(read, offsets):
        starts[places], ends[places] = heads["first"], heads["second"]
        if not (_is_plain(heads, offsets[places], file_size) & is_there & (heads["flag"] == 2)).all():
            return None
    is_chain = starts[0] == 1 and ends[-1] == num_images + 1 and np.array_equal(starts[1:], ends[:-1])
    if not (is_chain and np.all(starts <= ends) and np.all(starts == np.floor(starts))):
        return None
    return np.repeat(np.arange(len(offsets), dtype=np.int64), (ends - starts).astype(np.int64))


def _read_heads(read: ReadAt, offsets: Int64s) -> Iterator[tuple[slice | Int64s, npt.NDArray[np.void], Bools]]:
    """Places, the heads there, and which of them are there in full, in the order of the file."""
    order = None if np.all(offsets[1:] >= offsets[:-1]) else np.argsort(offsets, kind="stable")
    ordered = offsets if order is None else offsets[order]
    start = 0
    while start < len(ordered):
        stop = int(np.searchsorted(ordered, ordered[start] + _BLOCK_BYTES, side="right"))
        heads, is_there = _heads_at(read, ordered[start:stop])
        yield slice(start, stop) if order is None else order[start:stop], heads, is_there
        start = stop


def _heads_at(read: ReadAt, offsets: Int64s) -> tuple[npt.NDArray[np.void], Bools]:
    first, num_bytes = int(offsets[0]), int(offsets[-1] - offsets[0]) + _HEAD.itemsize
    if num_bytes > _LONG_RECORD * len(offsets):
        pieces = [read(int(offset), _HEAD.itemsize) for offset in offsets]
        is_there = np.array([len(piece) == _HEAD.itemsize for piece in pieces])
        return np.frombuffer(b"".join(piece.ljust(_HEAD.itemsize, b"\0") for piece in pieces), dtype=_HEAD), is_there
    content = read(first, num_bytes)
    is_there = offsets - first + _HEAD.itemsize <= len(content)
    block = np.frombuffer(content.ljust(num_bytes, b"\0"), dtype=np.uint8)
    heads = block[(offsets - first)[:, None] + np.arange(_HEAD.itemsize)]
    return heads.view(_HEAD)[:, 0], is_there


def _is_plain(heads: npt.NDArray[np.void], offsets: Int64s, file_size: int) -> Bools:
    """Where a record is one whole part with room for its labels; only there the head tells them."""
    length = (heads["word"] & MAX_LENGTH).astype(np.int64)
    needed = RECORD_HEAD.size + 4 * heads["flag"].astype(np.int64)
    is_whole = (heads["magic"] == _MAGIC) & (heads["word"] >> 29 == WHOLE)
    return np.asarray(is_whole & (needed <= length) & (offsets + 8 + length <= file_size))


def _label_of(read: ReadAt, file_size: int, offset: int, key: int) -> float:
    try:
        return unpack_record(read_payload(read, offset, file_size)).labels[0]
    except DataError as error:
        raise DataError(f"key {key}, {error}") from error
