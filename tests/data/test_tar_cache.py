"""Keeping fetched shards on the local disk."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import GIB
from gkd.data import RecordFile
from gkd.data.tar_cache import ShardCache
from gkd.data.tar_index import Shard
from gkd.data.tar_shards import TarShards
from gkd.data.tar_writing import write_shards
from tests.data.faces import write_faces
from tests.data.tar_server import serve


def make(number: int, size: int = 100) -> tuple[Shard, bytes]:
    content = bytes([number]) * size
    return Shard(f"{number}.tar", 1, size, hashlib.sha256(content).hexdigest()), content


def test_shards_are_fetched_once_in_all_epochs_and_processes(tmp_path: Path) -> None:
    write_faces(tmp_path / "a.rec", 20, 4)
    write_shards(tmp_path / "a.rec", tmp_path / "shards", images_per_shard=6)
    rec = RecordFile(tmp_path / "a.rec")
    with serve(tmp_path / "shards") as served:
        for _ in range(2):
            shards = TarShards(served.address, cache=tmp_path / "cache", cache_gib=1)
            assert [shards[index] for index in range(20)] == [rec[index] for index in range(20)]
        assert [served.requests[f"shard-{number:06d}.tar"] for number in range(4)] == [1] * 4


def test_a_full_cache_keeps_what_it_has(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 250 / GIB)
    shards = [make(number) for number in range(3)]
    for shard, content in shards:
        cache.add(shard, content)
    assert [cache.find(shard) for shard, _ in shards] == [shards[0][1], shards[1][1], None]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{shard.sha256}.tar" for shard, _ in shards[:2])


def test_what_nobody_used_for_a_day_gives_way(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 250 / GIB)
    (tmp_path / "notes.tar").write_bytes(b"mine" * 100)
    shards = [make(number) for number in range(3)]
    for shard, content in shards[:2]:
        cache.add(shard, content)
        os.utime(tmp_path / f"{shard.sha256}.tar", (time.time() - 90_000,) * 2)
    assert cache.find(shards[0][0])  # used now
    cache.add(*shards[2])
    assert [cache.find(shard) for shard, _ in shards] == [shards[0][1], None, shards[2][1]]
    assert (tmp_path / "notes.tar").exists()


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"\1" * 101])
def test_damaged_files_are_dropped(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    cache = ShardCache(tmp_path, 1)
    shard, content = make(1)
    cache.add(shard, content)
    path = tmp_path / f"{shard.sha256}.tar"
    path.write_bytes(damage)
    assert cache.find(shard) is None
    assert "damaged; it is fetched again" in caplog.text
    assert not path.exists()


def test_wrong_content_is_not_kept(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1)
    cache.add(make(1)[0], make(2)[1])
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_to_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    cache = ShardCache(tmp_path, 1)
    for number in range(2):
        cache.add(*make(number))
    assert len(caplog.records) == 1
    assert "cannot keep shards here ([Errno 28] No space left on device); going on without" in caplog.text


def test_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache_gib must be above 0, got 0"):
        ShardCache(tmp_path, 0)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot make this folder for the cache"):
        ShardCache(tmp_path / "file" / "x", 1)
