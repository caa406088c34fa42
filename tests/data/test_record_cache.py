"""The index and labels kept beside a .rec file: found again, shared, and ignored whenever something does not fit."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkd.core.errors import DataError
from gkd.data import RecordFile, record_index, recordio
from gkd.data.record_cache import cache_path, load_arrays, save_arrays, stamp_of
from gkd.data.record_index import open_index, read_idx
from tests.data.faces import write_faces

OLD = 1_000_000_000


@pytest.fixture
def rec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A .rec of 20 images that changed long ago, and a cache that is used however small the file is."""
    monkeypatch.setattr(record_index, "_MIN_CACHED", 1)
    monkeypatch.setattr(recordio, "_MIN_CACHED_LABELS", 1)
    write_faces(tmp_path / "a.rec")
    _age(tmp_path)
    return tmp_path / "a.rec"


def _age(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (OLD, OLD))


def _never(*_: object) -> None:
    raise AssertionError("the index is read anew")


def _facts(rec: Path) -> tuple[list[tuple[bytes, int]], list[int], list[int], str]:
    file = RecordFile(rec)
    return [file[index] for index in range(len(file))], file.keys.tolist(), file.labels.tolist(), file.fingerprint


@pytest.mark.parametrize("with_idx", [True, False])
def test_what_is_kept_is_what_was_read(rec: Path, monkeypatch: pytest.MonkeyPatch, with_idx: bool) -> None:
    if not with_idx:
        rec.with_suffix(".idx").unlink()
    first = _facts(rec)
    assert cache_path(rec, "index").exists()
    assert cache_path(rec, "labels").exists()
    for name in ("read_idx", "scan"):
        monkeypatch.setattr(record_index, name, _never)
    for name in ("read_labels", "labels_from_ranges"):
        monkeypatch.setattr(recordio, name, _never)
    assert _facts(rec) == first


def test_keys_that_are_not_consecutive_are_kept(rec: Path) -> None:
    idx = rec.with_suffix(".idx")
    idx.write_text("".join(line for line in idx.read_text().splitlines(True) if not line.startswith("7\t")))
    _age(rec.parent)
    index = open_index(rec, rec.stat().st_size, stamp_of(rec, idx))
    again = open_index(rec, rec.stat().st_size, stamp_of(rec, idx))
    for each in (index, again):
        assert not isinstance(each.keys, range)
        assert list(each.keys) == [*range(7), *range(8, 25)]
        assert (each.place_of(7), each.place_of(8), each.place_of(99)) == (7, 7, len(each))
    assert np.array_equal(index.offsets, again.offsets)
    assert index.last == again.last


def test_small_files_get_no_cache(tmp_path: Path) -> None:
    write_faces(tmp_path / "a.rec")
    _age(tmp_path)
    _facts(tmp_path / "a.rec")
    assert not list(tmp_path.glob(".*"))


def test_a_changed_file_is_indexed_anew(rec: Path) -> None:
    first = _facts(rec)
    write_faces(rec, num_images=21, num_identities=3)
    assert len(RecordFile(rec)) == 21
    _age(rec.parent)
    second = _facts(rec)
    assert second != first
    assert len(second[0]) == 21
    # The .rec stays as it is and its .idx tells of fewer records.
    idx = rec.with_suffix(".idx")
    idx.write_text("".join(f"{line}\n" for line in idx.read_text().splitlines() if line.split("\t")[0] != "24"))
    os.utime(idx, (OLD, OLD))
    assert len(RecordFile(rec)._identity_offsets) == 2


def test_a_file_that_changed_a_moment_ago_is_not_cached(rec: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    os.utime(rec)
    _facts(rec)
    assert not list(rec.parent.glob(".*"))
    assert "not written yet, since the files changed a moment ago" in caplog.text


def test_a_folder_that_cannot_be_written(
    rec: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gkd.data.record_cache.atomic_write", refuse)
    assert len(_facts(rec)[0]) == 20
    assert not list(rec.parent.glob(".*"))
    assert ".a.gkd-index: cannot be written" in caplog.text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(data=st.data())
def test_a_damaged_cache_is_made_anew(rec: Path, data: st.DataObject) -> None:
    caches = [cache_path(rec, "index"), cache_path(rec, "labels")]
    for cache in caches:
        cache.unlink(missing_ok=True)
    expected = _facts(rec)
    cache = data.draw(st.sampled_from(caches))
    whole = cache.read_bytes()
    content = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    cache.write_bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])
    assert _facts(rec) == expected
    assert cache.read_bytes() == whole


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_forged_index_never_gives_a_wrong_image(rec: Path, data: st.DataObject) -> None:
    cache, stamp = cache_path(rec, "index"), stamp_of(rec, rec.with_suffix(".idx"))
    cache.unlink(missing_ok=True)
    expected = _facts(rec)[0]
    arrays = load_arrays(cache, stamp)
    assert arrays is not None
    forged = {name: array.copy() for name, array in arrays.items()}
    offsets = st.integers(-(2**63), 2**63 - 1) | st.integers(0, rec.stat().st_size) | st.sampled_from(forged["offsets"])
    for place in data.draw(st.lists(st.integers(0, 24), min_size=1, max_size=4)):
        forged["offsets"][place] = data.draw(offsets)
    assert save_arrays(cache, stamp, forged)
    with contextlib.suppress(DataError):
        file = RecordFile(rec)
        for index in range(len(file)):
            with contextlib.suppress(DataError):
                assert file[index] == expected[index]
                file.will_need(np.arange(len(file)))
        assert len(file.labels) == len(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: b"foreign!" + content[8:],
        lambda content: content[:8] + struct.pack("<I", 2) + content[12:],
        lambda content: content[:12] + struct.pack("<I", 1 << 31) + content[16:],
        lambda content: content[:-8],
        lambda content: content + b"\0",
        lambda content: content.replace(b"stamp", b"stomp"),
    ],
)
def test_a_cache_of_another_kind_is_made_anew(rec: Path, change: object) -> None:
    first = _facts(rec)
    cache = cache_path(rec, "index")
    whole = cache.read_bytes()
    cache.write_bytes(change(whole))  # type: ignore[operator]
    assert load_arrays(cache, stamp_of(rec, rec.with_suffix(".idx"))) is None
    assert _facts(rec) == first
    assert cache.read_bytes() == whole


def test_headers_with_unfit_contents(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert save_arrays(path, (1, 2), {"a": np.arange(3)})
    found = load_arrays(path, (1, 2))
    assert found is not None
    assert found["a"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1
    assert load_arrays(path, (1, 3)) is None
    for name, content in {"keys": np.arange(2), "offsets": np.arange(3), "last": np.array([3])}.items():
        arrays = {"keys": np.arange(3), "offsets": np.arange(3), "last": np.array([1])} | {name: content}
        if name != "offsets":
            assert save_arrays(path, (1, 2), arrays)
            assert record_index._load(path, (1, 2)) is None
    save_arrays(path, (1, 2), {"keys": np.array([2, 1, 3]), "offsets": np.arange(3), "last": np.array([1])})
    assert record_index._load(path, (1, 2)) is None


@pytest.mark.timeout(20)
def test_a_pipe_under_the_caches_name_is_not_waited_for(rec: Path) -> None:
    os.mkfifo(cache_path(rec, "index"))
    assert len(RecordFile(rec)) == 20


def test_labels_out_of_range_are_not_believed(rec: Path) -> None:
    first = _facts(rec)
    stamp = stamp_of(rec, rec.with_suffix(".idx"))
    for labels in (np.full(20, -1), np.full(20, 1 << 25), np.zeros(19)):
        assert save_arrays(cache_path(rec, "labels"), stamp, {"labels": labels.astype(np.int64)})
        assert _facts(rec) == first


def _open_and_tell(rec: Path, results: multiprocessing.SimpleQueue[int]) -> None:
    results.put(len(_facts(rec)[0]))


def test_two_processes_at_once(rec: Path) -> None:
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    workers = [fork.Process(target=_open_and_tell, args=(rec, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [results.get() for _ in workers] == [20] * 3
    for worker in workers:
        worker.join()
    assert sorted(path.name for path in rec.parent.glob(".*")) == [".a.gkd-index", ".a.gkd-labels"]


@pytest.mark.parametrize("chunk", [8, 9, 64, 1 << 20])
@pytest.mark.parametrize("order", ["rising", "gap", "shuffled"])
def test_an_index_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, order: str) -> None:
    monkeypatch.setattr(record_index, "_CHUNK_BYTES", chunk)
    monkeypatch.setattr(record_index, "_MAX_LINE_BYTES", 64)
    keys = np.arange(5, 105)
    if order == "gap":
        keys[60:] += 1
    if order == "shuffled":
        keys = np.random.default_rng(0).permutation(keys)
    offsets = np.arange(100) * 1000
    (tmp_path / "a.idx").write_text("\n".join(f"{key}\t{offset}" for key, offset in zip(keys, offsets, strict=True)))
    index = read_idx(tmp_path / "a.idx", 100_000)
    assert isinstance(index.keys, range) == (order == "rising")
    assert list(index.keys) == sorted(keys.tolist())
    assert index.offsets.tolist() == offsets[np.argsort(keys)].tolist()
    assert index.offsets[index.last] == 99_000


def test_keys_at_the_ends_of_int64(tmp_path: Path) -> None:
    """Their difference wraps around to one."""
    (tmp_path / "a.idx").write_text(f"{2**63 - 1}\t0\n{-(2**63)}\t8\n")
    with pytest.raises(DataError, match="is negative"):
        read_idx(tmp_path / "a.idx", 100)
