"""Reading tar shards."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.data import RecordFile
from gkd.data import tar_resident as module
from gkd.data.tar_folder import CLOUD_SCHEMES
from gkd.data.tar_shards import TarShards
from gkd.data.tar_writing import write_shards
from tests.data.faces import write_faces
from tests.data.tar_server import serve

NUM_IMAGES = 20


@pytest.fixture
def rec(tmp_path: Path) -> RecordFile:
    write_faces(tmp_path / "a.rec", NUM_IMAGES, 4)
    (tmp_path / "a.identities.txt").write_text("Ann\nBö\nCy\nDee\n", encoding="utf-8")
    return RecordFile(tmp_path / "a.rec")


@pytest.fixture
def folder(tmp_path: Path, rec: RecordFile) -> Path:
    """Four shards of 6, 6, 6 and 2 images."""
    write_shards(rec.path, tmp_path / "shards", images_per_shard=6)
    return tmp_path / "shards"


def assert_same(shards: TarShards, rec: RecordFile) -> None:
    assert len(shards) == len(rec)
    assert [shards[index] for index in range(len(rec))] == [rec[index] for index in range(len(rec))]
    assert shards.labels.dtype == np.int64
    assert shards.labels.tolist() == rec.labels.tolist()
    assert shards.fingerprint == rec.fingerprint
    assert shards.num_identities == rec.num_identities
    assert shards.identity_names == rec.identity_names == ("Ann", "Bö", "Cy", "Dee")


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between tries are noted, not made."""
    pauses: list[float] = []
    monkeypatch.setattr("gkd.data.tar_folder.time.sleep", pauses.append)
    return pauses


def in_shard_order(shards: TarShards) -> list[int]:
    return [int(index) for ids in shards.shard_ids for index in ids]


def test_shards_are_the_rec_that_they_were_made_from(rec: RecordFile, folder: Path) -> None:
    shards = TarShards(folder)
    assert_same(shards, rec)
    assert shards.is_streamed
    assert sorted(in_shard_order(shards)) == list(range(NUM_IMAGES))
    first = int(shards.shard_ids[1][2])
    assert shards.describe(first) == f"{folder}/shard-000001.tar: image 2 of 6, sample {first}"
    for index in (-1, NUM_IMAGES):
        with pytest.raises(IndexError, match=f"no image {index}; there are 20"):
            shards[index]


def test_over_http(rec: RecordFile, folder: Path) -> None:
    with serve(folder) as served:
        shards = TarShards(served.address + "/")
        assert_same(shards, rec)
        assert set(served.requests.values()) == {1}
        served.has_length = False
        assert_same(TarShards(served.address), rec)


def test_in_a_cloud_store(rec: RecordFile, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setitem(CLOUD_SCHEMES, "memory", "fsspec")
    for path in folder.iterdir():
        with fsspec.open(f"memory://bucket/set/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    shards = TarShards("memory://bucket/set")
    assert_same(shards, rec)
    with pytest.raises(DataError, match=r"memory://bucket/none/index.json: cannot be read: "):
        TarShards("memory://bucket/none")


def test_each_shard_is_fetched_once_and_let_go_when_all_is_read(folder: Path) -> None:
    shards = TarShards(folder, resident_shards=1)
    for index in in_shard_order(shards):
        shards[index]
    assert shards.num_loads == 4
    assert not shards._resident._shards


def test_the_least_recently_read_shard_gives_way_and_the_user_is_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = TarShards(folder, resident_shards=2)
    one, two, three = (int(ids[0]) for ids in shards.shard_ids[:3])
    for index in (one, two, one, three, one):
        shards[index]
    assert shards.num_loads == 3  # the second gave way, not the first
    assert not caplog.records
    for index in (two, three, one, two):
        shards[index]
    assert len(caplog.records) == 1
    assert "shard-000001.tar is fetched again since more than 2 shards are in use at once" in caplog.text


def test_what_is_read_next_does_not_give_way(folder: Path) -> None:
    shards = TarShards(folder, resident_shards=2)
    one, two, three = (ids.astype(np.int64) for ids in shards.shard_ids[:3])
    shards[int(one[0])]
    shards[int(two[0])]
    shards.will_need(np.array([three[0], one[1]]))
    shards[int(three[0])]
    shards[int(one[1])]
    assert shards.num_loads == 3


def test_idle_shards_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_IDLE_READS", 3)
    shards = TarShards(folder)
    one, two, three = shards.shard_ids[:3]
    for index in (one[0], *two[:5], three[0]):
        shards[int(index)]
    assert set(shards._resident._shards) == {1, 2}


def test_shards_that_are_needed_are_fetched_side_by_side(rec: RecordFile, folder: Path) -> None:
    with serve(folder) as served:
        shards = TarShards(served.address)
        wanted = np.array([int(ids[0]) for ids in shards.shard_ids] + [-1, 99])
        shards.will_need(wanted)
        assert shards.num_loads == 4
        assert_same(shards, rec)
        assert shards.num_loads == 4


def test_pickling_leaves_the_shards_in_memory_behind(folder: Path) -> None:
    shards = TarShards(folder, resident_shards=3)
    expected = shards[0]
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.num_loads == 0
    assert copy[0] == expected
    assert copy._resident.capacity == 3


def test_a_dropped_connection_is_tried_again(
    rec: RecordFile, folder: Path, no_pause: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with serve(folder) as served:
        served.num_drops = 2
        assert_same(TarShards(served.address), rec)
    assert no_pause == [0.5, 1.0]
    assert "ends after" in caplog.text
    assert "trying again in 0.5 seconds" in caplog.text


def test_a_dropped_connection_shows_without_an_announced_length(
    rec: RecordFile, folder: Path, no_pause: list[float]
) -> None:
    with serve(folder) as served:
        served.num_drops, served.has_length = 1, False
        assert_same(TarShards(served.address), rec)
    assert no_pause == [0.5]


def test_a_server_that_always_fails(folder: Path, no_pause: list[float]) -> None:
    with serve(folder) as served:
        shards = TarShards(served.address, num_attempts=3)
        served.status = 503
        index = int(shards.shard_ids[2][1])
        with pytest.raises(GkdError) as caught:
            shards[index]
        assert served.requests["shard-000002.tar"] == 3
    # Not a DataError: the image is not bad, so training must not go on without it.
    assert type(caught.value) is GkdError
    assert str(caught.value) == (
        f"{served.address}/shard-000002.tar: cannot be read after 3 attempts: the server answers 503 Service "
        f"Unavailable; check the network and the server, then resume (needed for sample {index})"
    )
    assert no_pause == [0.5, 1.0]


def test_network_failures_of_announced_shards_raise(folder: Path, no_pause: list[float]) -> None:
    with serve(folder) as served:
        shards = TarShards(served.address, num_attempts=2)
        served.status = 500
        with pytest.raises(GkdError, match="after 2 attempts"):
            shards.will_need(np.arange(NUM_IMAGES))
        served.status = 404
        shards.will_need(np.arange(NUM_IMAGES))
        with pytest.raises(DataError, match=r"cannot be read: the server answers 404 Not Found \(needed for sample 3"):
            shards[3]


def test_nobody_listens(folder: Path, no_pause: list[float]) -> None:
    with serve(folder) as served:
        address = served.address
    with pytest.raises(GkdError, match=r"index.json: cannot be read after 5 attempts: .*refused"):
        TarShards(address)
    assert no_pause == [0.5, 1.0, 2.0, 4.0]


def test_a_truncated_shard(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    shards = TarShards(folder)
    index, size = int(shards.shard_ids[1][3]), path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError) as caught:
        shards[index]
    assert str(caught.value) == (
        f"{path}: ends after {size - 1:,} of {size:,} bytes; copy or make it again (needed for sample {index})"
    )
    path.write_bytes(b"\0" * (size + 1))
    with pytest.raises(DataError, match=f"shard-000001.tar: .*needed for sample {index}"):
        shards[index]
    path.unlink()
    with pytest.raises(DataError, match=f"shard-000001.tar: no such file .*needed for sample {index}"):
        shards[index]


def test_a_longer_file_over_http(folder: Path, no_pause: list[float]) -> None:
    with serve(folder) as served:
        shards = TarShards(served.address)
        path = folder / "shard-000000.tar"
        path.write_bytes(path.read_bytes() + b"\0")
        with pytest.raises(DataError, match=r"has more than the [0-9,]+ bytes that it should have"):
            shards[int(shards.shard_ids[0][0])]
    assert not no_pause


def test_exchanged_shards(folder: Path) -> None:
    shards = TarShards(folder)
    first, second = folder / "shard-000000.tar", folder / "shard-000001.tar"
    assert first.stat().st_size == second.stat().st_size
    first.rename(folder / "x")
    second.rename(first)
    index, other = int(shards.shard_ids[0][0]), int(shards.shard_ids[1][0])
    with pytest.raises(DataError, match=rf"image 0 of 6, sample {index}: the tar has b'{other:09d}.png' in its place"):
        shards[index]


def test_damaged_pixels_never_pass(folder: Path) -> None:
    shards = TarShards(folder)
    index = int(shards.shard_ids[0][2])
    encoded = shards[index][0]
    path = folder / "shard-000000.tar"
    content = path.read_bytes()
    at = content.index(encoded) + len(encoded) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    fresh = TarShards(folder)
    with pytest.raises(DataError, match=rf"image 2 of 6, sample {index}: its checksum is not that of the index"):
        fresh[index]
    assert fresh[int(shards.shard_ids[0][1])]


@pytest.mark.parametrize("setting", ["resident_shards", "timeout_seconds", "num_attempts"])
def test_settings_out_of_range(folder: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} must be .*, got 0"):
        TarShards(folder, **{setting: 0})


def test_nothing_is_said_when_all_is_well(folder: Path, rec: RecordFile, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert_same(TarShards(folder), rec)
    assert not caplog.records
