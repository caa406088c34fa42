"""Writes what is whole of a damaged .rec into a clean one.

N images.
"""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import GIB, atomic_write, read_bounded
from gkd.core.progress import progress
from gkd.data.check.record_check import CheckedRecords
from gkd.data.record_format import RECORD_HEAD, frame, pack_record, read_payload
from gkd.data.record_writer import sidecar_path

_MAX_TEXT_BYTES = 16 * GIB
_FLOAT32_EXACT = 1 << 24

Int64s = npt.NDArray[np.int64]


def repair(checked: CheckedRecords, out: str | Path, *, renumber: bool = False) -> Path:
    """Write the usable images of `checked`, with their bytes and labels as they are, and return the list of the lost.

    A file with a header record gets one again, with identity records, and keys 1..N; readers of that layout need keys
    without gaps, so where images are lost, keys close up, and an image away from the others of its label joins them.
    A file without a header keeps its keys. `<out>.idx`,
    `property`, the .lst and the identity names follow. `<stem>.lost.csv` has a line for each record or stretch of
    bytes that is lost.

    Args:
        checked: what `check_records` found.
        out: the .rec to write; never the file itself.
        renumber: also number the labels 0, 1, 2 … without gaps, and write images sorted by label with a header.

    Raises:
        ConfigError: `out` is the file itself, or no .rec name.
        DataError: nothing usable, or a file that cannot be written.
    """
    out = Path(out)
    _check_out(checked, out)
    order, labels = _order(checked, renumber)
    has_header = checked.has_header or renumber
    keys = np.arange(1, len(order) + 1) if has_header else checked.keys[order]
    starts = np.flatnonzero(np.diff(labels, prepend=-1)) if has_header else None
    with atomic_write(out) as temporary:
        with temporary.open("wb") as file:
            lines = _write_records(file, checked, order, keys, labels, starts)
        out.with_suffix(".idx").unlink(missing_ok=True)
    _write_lines(out.with_suffix(".idx"), (f"{key}\t{offset}" for key, offset in lines))
    _write_sidecars(checked, out, checked.keys[order], keys, labels, renumber=renumber)
    return _write_lost(checked, out)


def _check_out(checked: CheckedRecords, out: Path) -> None:
    if out.suffix != ".rec":
        raise ConfigError(f"{out}: the name must end in .rec")
    if out.resolve() == checked.path.resolve() or (out.exists() and out.samefile(checked.path)):
        raise ConfigError(f"{out}: is the damaged file itself; name another, nothing is repaired in place")
    if out.with_suffix(".idx").resolve() == checked.path.with_suffix(".idx").resolve():
        raise ConfigError(f"{out}: its .idx would replace that of {checked.path}; name another file")
    if not len(checked.keys):
        raise DataError(f"{checked.path}: holds no usable image, so nothing was written")


def _order(checked: CheckedRecords, renumber: bool) -> tuple[Int64s, Int64s]:
    """Which usable images to write, in order, and their labels."""
    labels = checked.labels
    if renumber:
        labels = np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int64)
        order = np.argsort(labels, kind="stable")
    elif checked.has_header:
        # Each label's images together, as identity records need them; labels by their smallest key.
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        order = np.argsort(first[inverse.reshape(-1)], kind="stable")
    else:
        order = np.argsort(checked.records["offset"], kind="stable")
    return order, labels[order]


def _write_records(
    file: BinaryIO, checked: CheckedRecords, order: Int64s, keys: Int64s, labels: Int64s, starts: Int64s | None
) -> list[tuple[int, int]]:
    """Write all records; returns key and offset of each."""
    lines: list[tuple[int, int]] = []

    def add(key: int, payload: bytes) -> None:
        lines.append((key, file.tell()))
        file.write(frame(payload))

    stop = len(order) + 1
    if starts is not None:
        add(0, pack_record(0, (_rounded_down(stop), _rounded_down(stop + len(starts))), b""))
    with checked.path.open("rb") as source:
        read = _reader(source)
        for place in progress(range(len(order)), "writing", total=len(order)):
            payload = read_payload(read, int(checked.records["offset"][order[place]]), checked.size)
            add(int(keys[place]), _relabelled(payload, int(keys[place]), int(labels[place])))
    for number, start in enumerate([] if starts is None else starts.tolist()):
        assert starts is not None
        end = int(starts[number + 1]) if number + 1 < len(starts) else len(order)
        add(stop + number, pack_record(stop + number, (float(start + 1), float(end + 1)), b""))
    return lines


def _reader(source: BinaryIO) -> Callable[[int, int], bytes]:
    return lambda offset, length: os.pread(source.fileno(), length, offset)


def _relabelled(payload: bytes, key: int, label: int) -> bytes:
    """The payload with this key and first label, all else unchanged."""
    flag, scalar, _, second_id = RECORD_HEAD.unpack_from(payload)
    if not flag:
        return RECORD_HEAD.pack(0, float(label), key, second_id) + payload[RECORD_HEAD.size :]
    head = RECORD_HEAD.pack(flag, scalar, key, second_id)
    return head + struct.pack("<f", float(label)) + payload[RECORD_HEAD.size + 4 :]


def _rounded_down(value: int) -> float:
    """The largest float32 not above `value`: a reader that counts to it never takes an identity record for an image."""
    rounded = np.float32(value)
    return float(np.nextafter(rounded, np.float32(0)) if int(rounded) > value else rounded)


def _write_sidecars(
    checked: CheckedRecords, out: Path, old_keys: Int64s, keys: Int64s, labels: Int64s, *, renumber: bool
) -> None:
    # A `property` beside the damaged file is that file's, which stays as it is.
    is_apart = out.parent.resolve() != checked.path.parent.resolve() or not out.with_name("property").exists()
    if checked.image_size is not None and is_apart:
        height, width = checked.image_size
        _write_lines(out.with_name("property"), [f"{int(labels.max()) + 1},{height},{width}"])
    names = sidecar_path(checked.path)
    if names.exists():
        lines = read_bounded(names, _MAX_TEXT_BYTES).decode("utf-8", "replace").splitlines()
        kept = [lines[label] for label in np.unique(checked.labels) if label < len(lines)] if renumber else lines
        _write_lines(sidecar_path(out), kept)
    listed = checked.path.with_suffix(".lst")
    if listed.exists():
        places = {int(key): place for place, key in enumerate(old_keys)}
        _write_lines(out.with_suffix(".lst"), _relisted(listed, places, keys, labels))


def _relisted(listed: Path, places: dict[int, int], keys: Int64s, labels: Int64s) -> Iterator[str]:
    """The .lst's lines of the images that remain, with their keys and labels as they are now."""
    for line in read_bounded(listed, _MAX_TEXT_BYTES).decode("utf-8", "surrogateescape").splitlines():
        fields = line.split("\t")
        if len(fields) < 3 or not fields[0].strip().isdecimal():
            continue
        place = places.get(int(fields[0]))
        if place is not None:
            yield "\t".join([str(keys[place]), f"{float(labels[place]):f}", *fields[2:]])


def _write_lines(path: Path, lines: Iterator[str] | list[str]) -> None:
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        file.writelines(f"{line}\n" for line in lines)


def _write_lost(checked: CheckedRecords, out: Path) -> Path:
    path = out.with_suffix(".lost.csv")
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["key", "start_byte", "end_byte", "label", "reason"])
        for lost in checked.lost:
            label = "" if np.isnan(lost.label) else f"{lost.label:g}"
            table.writerow(["" if lost.key < 0 else lost.key, lost.start, lost.end, label, lost.reason])
    return path
