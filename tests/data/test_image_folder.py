"""Folders of images, and packing them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gkd.core.errors import DataError
from gkd.data import FaceFolder, RecordFile, pack
from tests.data.faces import make_image


def _make_folder(path: Path) -> dict[str, bytes]:
    files = {
        "bo/2.png": make_image(1),
        "bo/10.PNG": make_image(2),
        "ann/a.jpeg": make_image(3, suffix=".jpg"),
        "cleo/z.bmp": make_image(4, suffix=".bmp"),
        "cleo/y.webp": make_image(5, suffix=".webp"),
        "cleo/notes.txt": b"not an image",
        "cleo/.hidden.png": b"left over",
        ".cache/x.png": b"hidden",
        "readme.md": b"text",
    }
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return files


def test_order_labels_and_names(tmp_path: Path) -> None:
    files = _make_folder(tmp_path)
    faces = FaceFolder(tmp_path)
    expected = [("ann/a.jpeg", 0), ("bo/10.PNG", 1), ("bo/2.png", 1), ("cleo/y.webp", 2), ("cleo/z.bmp", 2)]
    assert len(faces) == 5
    assert list(faces) == [(files[name], label) for name, label in expected]
    assert [faces.describe(index) for index in range(5)] == [str(tmp_path / name) for name, _ in expected]
    assert faces.identity_names == ("ann", "bo", "cleo")
    assert [faces.source(index) for index in range(5)] == [name for name, _ in expected]
    assert faces.num_identities == 3
    with pytest.raises(IndexError, match="no image 5; there are 5"):
        faces[5]


def test_an_image_that_is_no_longer_a_file(tmp_path: Path) -> None:
    _make_folder(tmp_path)
    faces = FaceFolder(tmp_path)
    (tmp_path / "ann" / "a.jpeg").unlink()
    os.mkfifo(tmp_path / "ann" / "a.jpeg")
    with pytest.raises(DataError, match=r"a\.jpeg: is not a regular file"):
        faces[0]
    (tmp_path / "bo" / "10.PNG").unlink()
    (tmp_path / "bo" / "10.PNG").mkdir()
    with pytest.raises(DataError, match=r"10\.PNG: is a folder"):
        faces[1]


def test_packing_keeps_everything(tmp_path: Path) -> None:
    _make_folder(tmp_path / "in")
    assert pack(tmp_path / "in", tmp_path / "out" / "a.rec").num_images == 5
    faces, packed = FaceFolder(tmp_path / "in"), RecordFile(tmp_path / "out" / "a.rec")
    assert list(packed) == list(faces)
    assert packed.identity_names == faces.identity_names
    assert packed.fingerprint == faces.fingerprint
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.identities.txt", "a.idx", "a.lst", "a.rec", "property"]
    (tmp_path / "in" / "ann" / "a.jpeg").write_bytes(make_image(9))
    assert FaceFolder(tmp_path / "in").fingerprint != packed.fingerprint


def test_an_identity_without_images_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _make_folder(tmp_path)
    (tmp_path / "bea").mkdir()
    assert FaceFolder(tmp_path).identity_names == ("ann", "bo", "cleo")
    assert "identity bea has no images and is left out" in caplog.text


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder"):
        FaceFolder(tmp_path / "none")
    with pytest.raises(DataError, match="has no sub-folders; put each person's images into a sub-folder"):
        FaceFolder(tmp_path)
    (tmp_path / "ann").mkdir()
    with pytest.raises(DataError, match="no sub-folder holds an image"):
        FaceFolder(tmp_path)
    (tmp_path / "a.jpg").write_bytes(make_image(0))
    with pytest.raises(DataError, match=r"image a\.jpg lies outside the identities"):
        FaceFolder(tmp_path)
    with pytest.raises(DataError, match="is a file, but a folder"):
        FaceFolder(tmp_path / "a.jpg")


def test_an_image_that_is_gone_or_empty(tmp_path: Path) -> None:
    _make_folder(tmp_path)
    faces = FaceFolder(tmp_path)
    (tmp_path / "ann" / "a.jpeg").unlink()
    with pytest.raises(DataError, match=r"a\.jpeg: no such file"):
        faces[0]
    (tmp_path / "ann" / "a.jpeg").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.jpeg: the image is empty"):
        pack(tmp_path, tmp_path / "a.rec")
    assert not (tmp_path / "a.rec").exists()


@pytest.mark.real
def test_genuine_folder(real_data: Path) -> None:
    faces = FaceFolder(real_data / "celeba")
    assert (len(faces), faces.num_identities) == (4892, 228)
