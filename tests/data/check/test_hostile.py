"""Files cut at any byte, or with any byte changed: the reader refuses, the check names the place, the repair saves.

What no structure shows (a changed bit of pixels, labels without a second witness) is left to the decoder, and where
that finds nothing, the image is read with the changed bytes.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkd.core.errors import DataError
from gkd.data.check import CheckedRecords, check_records, repair
from gkd.data.recordio import RecordFile
from tests.data.check.damaged import Sample, Span, sample

_thorough = settings(
    max_examples=1000,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    logging.disable(logging.WARNING)
    # In memory where that is possible: the repair waits for the disk, thousands of times here.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)
    logging.disable(logging.NOTSET)


def _read_all(path: Path) -> dict[int, tuple[bytes, int]]:
    """What the reader gives by key; its refusals are left out."""
    found = {}
    try:
        file = RecordFile(path)
    except DataError:
        return {}
    for index in range(len(file)):
        try:
            found[int(file.keys[index])] = file[index]
        except DataError:
            continue
    return found


def _check(path: Path, whole: list[Span]) -> CheckedRecords | None:
    """Check and repair the file; every one of `whole` must come back with its bytes and label."""
    try:
        checked = check_records(path)
    except DataError:
        assert not whole
        return None
    if not len(checked.keys):
        assert not whole
        return checked
    repair(checked, path.with_name("repaired.rec"))
    saved = list(RecordFile(path.with_name("repaired.rec")))
    for span in whole:
        assert saved.count((span.body, span.label)) == 1
    return checked


def _structure_damages(checked: CheckedRecords) -> list[tuple[int, int]]:
    return [(fault.start or 0, fault.end or 0) for fault in checked.faults if fault.kind == "structure"]


@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize("with_idx", [True, False])
@settings(_thorough, max_examples=250)
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere(folder: Path, has_header: bool, with_idx: bool, place: float) -> None:
    whole = sample(has_header=has_header)
    length = int(place * len(whole.content))
    path = whole.write(folder / "cut.rec", whole.content[:length], with_idx=with_idx)
    kept = [span for span in whole.images if span.end <= length]
    for body, label in _read_all(path).values():
        assert any((span.body, span.label) == (body, label) for span in kept)
    checked = _check(path, kept)
    if checked is None:
        return
    starts = [span.start for span in whole.spans]
    if length not in starts:
        cut = max(start for start in starts if start < length)
        assert _structure_damages(checked) == [(cut, length)]
    if has_header or with_idx:
        assert not checked.faults.is_clean


def _span_at(whole: Sample, place: int) -> Span:
    return next(span for span in whole.spans if span.start <= place < span.end)


def _check_change(folder: Path, has_header: bool, with_idx: bool, place: int, value: int) -> None:
    whole = sample(has_header=has_header)
    content = bytearray(whole.content)
    content[place] ^= value
    hit = _span_at(whole, place)
    path = whole.write(folder / "changed.rec", bytes(content), with_idx=with_idx)
    others = [span for span in whole.images if span is not hit]
    read = _read_all(path)
    checked = _check(path, others)
    assert checked is not None
    if place < hit.start + 8:
        named = [fault for fault in checked.faults if fault.start is not None and hit.start <= fault.start < hit.end]
        assert named, (place, value)
    # Whatever a change does, the reader gives the other images as they are, or refuses the file.
    for span in others:
        assert read.get(span.key, (span.body, span.label)) == (span.body, span.label)


@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize("with_idx", [True, False])
@settings(_thorough, max_examples=250)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_changed_byte(folder: Path, has_header: bool, with_idx: bool, place: float, value: int) -> None:
    _check_change(folder, has_header, with_idx, int(place * len(sample(has_header=has_header).content)), value)


@pytest.mark.parametrize("has_header", [True, False])
@settings(_thorough, max_examples=150)
@given(number=st.integers(0, 11), byte=st.integers(0, 31), bit=st.integers(0, 7))
def test_a_changed_bit_of_a_head(folder: Path, has_header: bool, number: int, byte: int, bit: int) -> None:
    place = sample(has_header=has_header).images[number].start + byte
    _check_change(folder, has_header, False, place, 1 << bit)


@pytest.mark.parametrize("has_header", [True, False])
@settings(_thorough, max_examples=100)
@given(place=st.floats(0, 1, exclude_max=True), length=st.integers(1, 2000), fill=st.sampled_from([0, 255, None]))
def test_a_stretch_of_lost_bytes(folder: Path, has_header: bool, place: float, length: int, fill: int | None) -> None:
    whole = sample(has_header=has_header)
    start = int(place * len(whole.content))
    end = min(start + length, len(whole.content))
    # None: the bytes are those of another place of the same file, as a failing disk or a bad download makes them.
    other = (whole.content * 2)[start + 1000 : end + 1000] if fill is None else bytes([fill]) * (end - start)
    content = whole.content[:start] + other + whole.content[end:]
    path = whole.write(folder / "stretch.rec", content, with_idx=False)
    kept = [span for span in whole.images if span.end <= start or span.start >= end]
    if fill is None:
        _read_all(path)  # copies of whole records are records: only that nothing crashes is certain
        check_records(path)
        return
    _check(path, kept)


def test_every_bit_of_an_identity_record_without_index(folder: Path) -> None:
    whole = sample()
    identity = whole.spans[-2]
    for place in range(identity.start, identity.end):
        for bit in (0, 3, 4, 7):
            content = bytearray(whole.content)
            content[place] ^= 1 << bit
            _check(whole.write(folder / "identity.rec", bytes(content), with_idx=False), whole.images)
