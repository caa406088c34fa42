"""Writing tar shards."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.core.files import locked_folder
from gkd.data import RecordFile
from gkd.data import tar_writing as module
from gkd.data.tar_claim import MARK_FILE
from gkd.data.tar_shards import TarShards
from gkd.data.tar_writing import ShardsWritten, write_shards
from tests.data.faces import make_image, write_faces


@pytest.fixture
def rec(tmp_path: Path) -> Path:
    write_faces(tmp_path / "a.rec", 20, 4)
    return tmp_path / "a.rec"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_written(rec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write_shards(rec, out, images_per_shard=8) == ShardsWritten(20, 3, 0)
    tars = [f"shard-{number:06d}.tar" for number in range(3)]
    assert sorted(contents(out)) == [".lock", "index.json", "samples.bin", *tars]
    index = json.loads((out / "index.json").read_text())
    assert [shard["num_images"] for shard in index["shards"]] == [8, 8, 4]
    for shard in index["shards"]:
        content = (out / shard["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["num_bytes"], shard["sha256"])
    with tarfile.open(out / tars[0]) as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uname, member.uid, member.mode) for member in members} == {(0, "gkd", 0, 0o444)}
    ids = [int(index) for index in TarShards(out).shard_ids[0]]
    assert [member.name for member in members] == [f"{index:09d}.{end}" for index in ids for end in ("cls", "png")]
    assert ids != sorted(ids)


def test_webdataset_reads_it(rec: Path, tmp_path: Path) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    write_shards(rec, tmp_path / "out", images_per_shard=8)
    # Its own opening of files leaves them open.
    streams = [io.BytesIO(path.read_bytes()) for path in sorted((tmp_path / "out").glob("*.tar"))]
    samples = list(group_by_keys(tar_file_expander({"url": "x", "stream": stream} for stream in streams)))
    faces = RecordFile(rec)
    read = sorted((int(sample["__key__"]), sample["png"], int(sample["cls"])) for sample in samples)
    assert read == [(index, *faces[index]) for index in range(20)]


def test_equal_settings_give_equal_bytes(rec: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_shards(rec, tmp_path / name, images_per_shard=8, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["shard-000000.tar"] != contents(tmp_path / "c")["shard-000000.tar"]


def test_an_interrupted_task_goes_on(rec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(rec, tmp_path / "whole", images_per_shard=5)
    written: list[str] = []
    out, write_shard = tmp_path / "out", module._write_shard

    def interrupted(faces: object, path: Path, *rest: object) -> object:
        if path.name == "shard-000002.tar" and not written.count(path.name):
            written.append(path.name)
            raise KeyboardInterrupt
        written.append(path.name)
        return write_shard(faces, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(rec, out, images_per_shard=5)
    assert not (out / "index.json").exists()
    with pytest.raises(DataError, match=r"index.json: no such file"):
        TarShards(out)
    (out / ".shard-000002.abcd.writing.tar").write_bytes(b"left over")
    with pytest.raises(DataError, match="is not empty, and holds no shards of this data and these settings"):
        write_shards(rec, out, images_per_shard=5, seed=1)
    written_before = len(written)
    assert write_shards(rec, out, images_per_shard=5) == ShardsWritten(20, 4, 2)
    assert written[written_before:] == ["shard-000002.tar", "shard-000003.tar"]
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "exchanged", "text"])
def test_damaged_shards_of_an_interrupted_task_are_written_again(
    rec: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    write_shards(rec, out, images_per_shard=5)
    expected = contents(out)
    content = {"truncated": expected["shard-000001.tar"][:600], "exchanged": expected["shard-000002.tar"], "text": b"x"}
    (out / "shard-000001.tar").write_bytes(content[damage])
    (out / "index.json").unlink()
    (out / MARK_FILE).write_text(json.dumps(json.loads(expected["index.json"])["made_with"]))
    assert write_shards(rec, out, images_per_shard=5).num_kept == 3
    assert "shard-000001.tar" in caplog.text
    assert "it is written again" in caplog.text
    assert contents(out) == expected


def test_a_finished_task_writes_nothing_or_what_is_missing(
    rec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_shards(rec, out, images_per_shard=5)
    expected = contents(out)
    (out / "shard-000003.tar").unlink()
    assert write_shards(rec, out, images_per_shard=5) == ShardsWritten(20, 4, 3)
    assert contents(out) == expected
    monkeypatch.setattr(module, "_write_all", None)
    assert write_shards(rec, out, images_per_shard=5) == ShardsWritten(20, 4, 4)
    with pytest.raises(DataError, match="name another folder"):
        write_shards(rec, out, images_per_shard=6)


def test_other_folders_are_left_alone(rec: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="other: is not empty, and holds no shards"):
        write_shards(rec, tmp_path / "other")
    assert contents(tmp_path / "other") == {"notes.txt": b"mine"}
    with pytest.raises(DataError, match=r"notes.txt: cannot be used as a folder: Not a directory"):
        write_shards(rec, tmp_path / "other" / "notes.txt")


def test_a_task_killed_at_its_start_goes_on(rec: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in (".lock", "..making.01234567.writing.json"):
        (tmp_path / "out" / name).write_bytes(b"")
    assert write_shards(rec, tmp_path / "out").num_shards == 1
    assert sorted(contents(tmp_path / "out")) == [".lock", "index.json", "samples.bin", "shard-000000.tar"]


def test_two_tasks_do_not_write_to_one_folder(rec: Path, tmp_path: Path) -> None:
    with (
        locked_folder(tmp_path / "out", "test", "a test"),
        pytest.raises(GkdError, match=r"another task writes shards in .*out; wait for it, or choose another folder"),
    ):
        write_shards(rec, tmp_path / "out")


def test_folders_of_images(tmp_path: Path) -> None:
    for number, suffix in enumerate((".png", ".jpg", ".webp", ".bmp")):
        (tmp_path / "in" / f"p{number}").mkdir(parents=True)
        (tmp_path / "in" / f"p{number}" / f"a{suffix}").write_bytes(make_image(number, suffix=suffix))
    write_shards(tmp_path / "in", tmp_path / "out")
    shards = TarShards(tmp_path / "out")
    assert shards.identity_names == ("p0", "p1", "p2", "p3")
    assert [shards[index] for index in range(4)] == [
        (make_image(number, suffix=suffix), number) for number, suffix in enumerate((".png", ".jpg", ".webp", ".bmp"))
    ]


def test_what_cannot_be_written(rec: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images per shard must be at least 1, got 0"):
        write_shards(rec, tmp_path / "out", images_per_shard=0)
    with pytest.raises(ConfigError, match="seed must be 0 or more, got -1"):
        write_shards(rec, tmp_path / "out", seed=-1)
    (tmp_path / "in" / "p\n0").mkdir(parents=True)
    (tmp_path / "in" / "p\n0" / "a.png").write_bytes(make_image(0))
    with pytest.raises(DataError, match=r"the identity name 'p\\n0' is no line of UTF-8 text"):
        write_shards(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "p\n0").rename(tmp_path / "in" / "p0")
    (tmp_path / "in" / "p0" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a.png: not a JPEG, PNG, BMP or WebP image"):
        write_shards(tmp_path / "in", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*shard*"))
