"""The index of tar shards, honest and hostile; and indexing tars of other tools."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkd.core.errors import DataError
from gkd.data.face_data import fingerprint_of
from gkd.data.tar_folder import TarFolder
from gkd.data.tar_index import INDEX_FILE, NAMES_FILE, SAMPLES_FILE, write_index
from gkd.data.tar_index_reading import read_index
from gkd.data.tar_indexing import index_shards
from gkd.data.tar_shards import TarShards
from gkd.data.tar_writing import write_shards
from tests.data.faces import make_image, write_faces


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a folder of shards of 4, 4 and 2 images."""
    folder = tmp_path_factory.mktemp("made")
    write_faces(folder / "a.rec", 10, 2)
    (folder / "a.identities.txt").write_text("Ann\nBob\n")
    write_shards(folder / "a.rec", folder / "out", images_per_shard=4)
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


@pytest.fixture
def folder(tmp_path: Path, made: dict[str, bytes]) -> Path:
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    facts = json.loads((folder / INDEX_FILE).read_text())
    change(facts)
    (folder / INDEX_FILE).write_text(json.dumps(facts))


HOSTILE_NAMES = [
    "../../etc/passwd.tar",
    "/etc/passwd.tar",
    "a/b.tar",
    "..\\b.tar",
    "pipe:cat x.tar",
    "http://host/a.tar",
    ".hidden.tar",
    "a b.tar",
    "a?x=.tar",
    "a.tar\n",
    "shard.zip",
    "-" + "x.tar",
    "a" * 300 + ".tar",
    "",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_shards_have_plain_names(folder: Path, name: str) -> None:
    edit(folder, lambda facts: facts["shards"][1].update(name=name))
    with pytest.raises(DataError, match=r"index.json: shard 1: not an index .* is not a plain name that ends in .tar"):
        TarShards(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(format="x"), "`format` is not 'gkd tar shards 1'"),
        (lambda f: f.pop("format"), "`format` must be of type str, got 'None'"),
        (lambda f: f.update(num_images=0), "`num_images` must be 1 to 268,435,456, got 0"),
        (lambda f: f.update(num_images=10**30), "`num_images` must be 1 to"),
        (lambda f: f.update(num_images=True), "`num_images` must be of type int"),
        (lambda f: f.update(num_images=9), "its shards have 10 images, but `num_images` is 9"),
        (lambda f: f.update(num_identities=1 << 25), "`num_identities` must be 1 to 16,777,216"),
        (lambda f: f.update(fingerprint="../x"), "`fingerprint` is no SHA-256 in hex: '../x'"),
        (lambda f: f.update(shards={}), "`shards` must be of type list"),
        (lambda f: f.update(shards=[1]), "shard 0: not an index of tar shards: not an object"),
        (lambda f: f["shards"][1].update(name="shard-000000.tar"), "shard-000000.tar is there twice"),
        (
            lambda f: f["shards"][1].update(num_images=-4),
            "shard 1: not an index .*`num_images` must be 1 to 10, got -4",
        ),
        (lambda f: f["shards"][1].update(num_bytes=1 << 40), "`num_bytes` must be 1 to 4,294,967,296"),
        (lambda f: f["shards"][1].update(num_bytes=512), "samples.bin: row 4 has an unfit place outside its shard"),
        (lambda f: f.update(num_identities=1, names_sha256=None), "samples.bin: row [0-9]+ has an unfit label"),
        (lambda f: f.update(samples_sha256="0" * 64), "samples.bin: does not belong to the index.json beside it"),
        (lambda f: f.update(names_sha256="0" * 64), "identities.txt: does not belong to the index.json beside it"),
        (lambda f: f.update(num_identities=3), "identities.txt: 2 names for 3 identities"),
        (lambda f: f.update(made_with=[]), "`made_with` must be of type dict"),
    ],
)
def test_unfit_facts(folder: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    edit(folder, change)
    with pytest.raises(DataError, match=message):
        TarShards(folder)


@pytest.mark.parametrize("content", [b"", b"[", b"<html>", b"[" * 100_000, b"\xff\xfe", b"[]", b"null"])
def test_no_index_at_all(folder: Path, content: bytes) -> None:
    (folder / INDEX_FILE).write_bytes(content)
    with pytest.raises(DataError, match=r"index.json: not an index of tar shards"):
        TarShards(folder)


def test_missing_and_short_files(folder: Path) -> None:
    samples = (folder / SAMPLES_FILE).read_bytes()
    assert len(samples) == 20 * 10
    (folder / SAMPLES_FILE).write_bytes(samples[:-1])
    with pytest.raises(DataError, match=r"samples.bin: ends after 199 of 200 bytes"):
        TarShards(folder)
    for name in (SAMPLES_FILE, INDEX_FILE):
        (folder / name).unlink()
        with pytest.raises(DataError, match=f"{name}: no such file"):
            TarShards(folder)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("sample_ids", -1, "row 2 has an unfit sample id;"),
        ("sample_ids", 10, "row 2 has an unfit sample id;"),
        ("sample_ids", None, r"row . has an unfit sample id \(there twice\)"),
        ("labels", 2, "row 2 has an unfit label"),
        ("labels", -1, "row 2 has an unfit label"),
        ("blocks", 0, "row 2 has an unfit place outside its shard"),
        ("blocks", -5, "row 2 has an unfit place outside its shard"),
        ("blocks", 2**31 - 1, "row 2 has an unfit place outside its shard"),
        ("sizes", 0, "row 2 has an unfit place outside its shard"),
        ("sizes", 2**31 - 1, "row 2 has an unfit place outside its shard"),
    ],
)
def test_unfit_samples(folder: Path, column: str, value: int | None, message: str) -> None:
    index = read_index(TarFolder(folder))
    values = getattr(index.samples, column).copy()
    values[2] = values[3] if value is None else value
    object.__setattr__(index.samples, column, values)
    write_index(folder, index)
    with pytest.raises(DataError, match=message):
        TarShards(folder)


def test_an_index_that_exchanges_samples_is_found_out(folder: Path) -> None:
    index = read_index(TarFolder(folder))
    object.__setattr__(index.samples, "sample_ids", index.samples.sample_ids[::-1].copy())
    write_index(folder, index)
    with pytest.raises(DataError, match=r"the tar has b'.*.png' in its place"):
        TarShards(folder)[0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.sampled_from([INDEX_FILE, SAMPLES_FILE, NAMES_FILE]), st.data())
def test_any_damage_is_a_plain_error_or_harmless(
    folder: Path, made: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    content = bytearray(made[name])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content)
    problem = None
    try:
        shards = TarShards(folder)
        labels = [shards[index][1] for index in range(10)]
    except DataError as error:
        problem = str(error)
    (folder / name).write_bytes(made[name])
    assert str(folder) in problem if problem else labels == [0] * 5 + [1] * 5


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: Any = "w", format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, mode, format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_of_other_tools(tmp_path: Path, format: int) -> None:
    images = [make_image(number) for number in range(4)]
    long_key = "people/" + "x" * 150
    write_tar(
        tmp_path / "b.tar",
        [("a.b.png", b"of another suffix"), ("a.JPG", images[2]), ("a.cls", b"3\n"), ("a.npy", b"?")],
        format=format,
    )
    write_tar(
        tmp_path / "a.tar",
        [
            ("__meta__", b"x"),
            (f"{long_key}.png", images[0]),
            (f"{long_key}.json", b'{"label": 1, "x": "y"}'),
            ("é/2.cls", b"0"),
            ("é/2.webp", images[1]),
        ],
        format=format,
    )
    index = index_shards(tmp_path)
    shards = TarShards(tmp_path)
    assert [shards[i] for i in range(3)] == [(images[0], 1), (images[1], 0), (images[2], 3)]
    assert shards.num_identities == 4
    assert shards.identity_names is None
    assert shards.fingerprint == fingerprint_of(shards) == index.fingerprint
    assert [ids.tolist() for ids in shards.shard_ids] == [[0, 1], [2]]
    assert index_shards(tmp_path).fingerprint == index.fingerprint  # again, over its own index


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x")], "sample 'a' has no label: a .cls with a number, or a .json with `label`, is needed"),
        ([("a.cls", b"1")], "sample 'a' has 0 images"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "sample 'a' has 2 images"),
        ([("a.jpg", b""), ("a.cls", b"1")], "sample 'a': the image is empty"),
        ([("a.jpg", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "sample 'a' has two members of one name"),
        ([("a.jpg", b"x"), ("a.cls", b"one")], r"'a.cls': no label from 0 below 16,777,216 in it \(begins with b'one'"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "'a.cls': no label"),
        ([("a.jpg", b"x"), ("a.cls", b"9" * 5000)], "'a.cls': no label"),
        ([("a.jpg", b"x"), ("a.cls", b"16777216")], "'a.cls': no label"),
        ([("a.jpg", b"x"), ("a.cls", b"1" * (1 << 20) + b"1")], "is too large for a label"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": "1"}')], "'a.json': no label"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": true}')], "'a.json': no label"),
        ([("a.jpg", b"x"), ("a.json", b"[" * 100_000)], "'a.json': no label"),
        ([("a.jpg", b"x"), ("a.pyd", b"cos\nsystem\n(S'false'\ntR.")], "sample 'a' has no label"),
        ([], "a.tar: holds no images"),
    ],
)
def test_tars_that_cannot_be_used(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=message):
        index_shards(tmp_path)
    assert not (tmp_path / INDEX_FILE).exists()


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_refused(tmp_path: Path, mode: str) -> None:
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x"), ("a.cls", b"1")], mode)
    with pytest.raises(DataError, match=r"a.tar: not an uncompressed tar, damaged or truncated"):
        index_shards(tmp_path)


def test_truncated_tars_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.cls", b"1"), ("a.jpg", b"x" * 5000)])
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content[:4000])
    with pytest.raises(DataError, match=r"a.tar: .*truncated"):
        index_shards(tmp_path)


def test_what_is_not_indexed(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="writes the index of these shards itself"):
        index_shards(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no .tar files"):
        index_shards(tmp_path / "empty")
    with pytest.raises(DataError, match="none: no such folder"):
        index_shards(tmp_path / "none")


def test_columns_survive(folder: Path) -> None:
    index = read_index(TarFolder(folder))
    assert index.samples.checksums.dtype == np.uint32
    again = type(index.samples).from_bytes(index.samples.to_bytes(), 10)
    assert all(np.array_equal(getattr(again, name), getattr(index.samples, name)) for name in vars(again))
