"""Unpacking: names, hostile lists and names, interruptions, and folders that hold something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.core.errors import DataError
from gkd.data import FaceFolder, RecordFile, RecordWriter, rec_unpack
from gkd.data.rec_pack import pack
from gkd.data.rec_unpack import unpack
from tests.data.faces import make_image, write_faces
from tests.data.test_rec_pack import files_of, make_people, write_files


def write_three(path: Path, names: list[str] | None = None) -> list[bytes]:
    """Three images: one of label 0, two of label 1."""
    images = [make_image(0), make_image(1, suffix=".jpg"), make_image(2, suffix=".webp")]
    with RecordWriter(path, identity_names=names) as writer:
        for label, image in zip((0, 1, 1), images, strict=True):
            writer.write(label, image)
    return images


class TestNames:
    def test_of_labels_and_keys(self, tmp_path: Path) -> None:
        images = write_three(tmp_path / "a.rec")
        assert unpack(tmp_path / "a.rec", tmp_path / "out") == 3
        names = ["000000/1.png", "000001/2.jpg", "000001/3.webp"]
        assert files_of(tmp_path / "out") == dict(zip(names, images, strict=True))

    def test_of_identities(self, tmp_path: Path) -> None:
        images = write_three(tmp_path / "a.rec", ["bo", "ann"])
        unpack(tmp_path / "a.rec", tmp_path / "out")
        assert files_of(tmp_path / "out") == dict(zip(["bo/1.png", "ann/2.jpg", "ann/3.webp"], images, strict=True))

    def test_keys_are_padded_so_that_their_order_stays(self, tmp_path: Path) -> None:
        write_faces(tmp_path / "a.rec", num_images=120, num_identities=3)
        unpack(tmp_path / "a.rec", tmp_path / "out")
        assert FaceFolder(tmp_path / "out").fingerprint == RecordFile(tmp_path / "a.rec").fingerprint

    def test_of_the_list_or_not(self, tmp_path: Path) -> None:
        files = make_people(2, 2)
        pack(write_files(tmp_path / "in", files), tmp_path / "a.rec")
        unpack(tmp_path / "a.rec", tmp_path / "listed")
        assert files_of(tmp_path / "listed") == files
        unpack(tmp_path / "a.rec", tmp_path / "keys", use_list=False)
        assert sorted(files_of(tmp_path / "keys")) == [
            "person0/1.png",
            "person0/2.jpg",
            "person1/3.png",
            "person1/4.jpg",
        ]


class TestHostile:
    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (["a/1.png", "b/../../x.png", "b/3.png"], r"key 2, 'b/../../x.png': the part '\.\.' begins with a dot"),
            (["/etc/1.png", "b/2.png", "b/3.png"], "key 1, '/etc/1.png': the part '' is empty"),
            (["a/1.png", "b/2.png", "b/.unpacked.json"], "the part '.unpacked.json' begins with a dot"),
            (["a/1.png", "b/2\x00.png", "b/3.png"], r"the part '2\\x00.png' has a control character"),
            (["a/1.png", "b/" + "x" * 300, "b/3.png"], "is longer than 255 bytes"),
            (["1.png", "b/2.png", "b/3.png"], "'1.png': is not of the form identity/file"),
            (["a/1.png", "b/c/2.png", "b/3.png"], "'b/c/2.png': is not of the form identity/file"),
            (["a/1.png", "b/2.png", "b/2.png"], "key 3, 'b/2.png': two images have this name"),
            (["a/1.png", "a/2.png", "a/3.png"], "images of labels 0 and 1 share a folder"),
            (["a/1.png", "b/2.png", "c/3.png"], "label 1 also has the folder 'b'"),
            (["a/1.png", "b/2.png"], "lists 2 images, and not those of the .rec"),
        ],
    )
    def test_lists(self, tmp_path: Path, lines: list[str], message: str) -> None:
        write_three(tmp_path / "a.rec")
        rows = (f"{key}\t{int(key > 1)}\t{name}\n" for key, name in enumerate(lines, start=1))
        (tmp_path / "a.lst").write_text("".join(rows))
        with pytest.raises(DataError, match=rf"a\.lst: .*{message}.*; give --no-list to name the images by their keys"):
            unpack(tmp_path / "a.rec", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["a", "../b"], "identity '../b' cannot name a folder: the name begins with a dot"),
            (["a", "b/c"], "the name has a path separator"),
            (["a", "b\0"], "the name has a control character"),
            (["a", "x" * 256], "the name is longer than 255 bytes"),
            (["a", "a"], "identity 'a' is there twice"),
        ],
    )
    def test_names_of_identities(self, tmp_path: Path, names: list[str], message: str) -> None:
        write_three(tmp_path / "a.rec", ["a", "b"])
        (tmp_path / "a.identities.txt").write_text("".join(f"{name}\n" for name in names))
        with pytest.raises(DataError, match=rf"a\.rec: its {message}|a\.rec: its identity .*{message}"):
            unpack(tmp_path / "a.rec", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_records_that_are_no_images(self, tmp_path: Path) -> None:
        with RecordWriter(tmp_path / "a.rec") as writer:
            writer.write(0, b"#!/bin/sh")
        with pytest.raises(
            DataError, match=r"key 1 at byte 40: not a JPEG, PNG, BMP or WebP image .*`prepare.py verify`"
        ):
            unpack(tmp_path / "a.rec", tmp_path / "out")
        assert files_of(tmp_path / "out") == {}

    def test_damaged_records(self, tmp_path: Path) -> None:
        write_three(tmp_path / "a.rec")
        content = bytearray((tmp_path / "a.rec").read_bytes())
        offset = int((tmp_path / "a.idx").read_text().split()[5])
        content[offset] = 0
        (tmp_path / "a.rec").write_bytes(content)
        with pytest.raises(
            DataError, match=rf"key 2, byte {offset}: no record starts here .*`prepare.py verify --repair`"
        ):
            unpack(tmp_path / "a.rec", tmp_path / "out")


class TestAgain:
    def test_an_interrupted_unpacking_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = make_people()
        pack(write_files(tmp_path / "in", files), tmp_path / "a.rec")
        whole, written = rec_unpack._write_file, []

        def write(out: Path, name: str, encoded: bytes) -> None:
            if len(written) == 10:
                (out / ".unpacking").write_bytes(b"half")
                raise KeyboardInterrupt
            whole(out, name, encoded)
            written.append(out / name)

        monkeypatch.setattr(rec_unpack, "_write_file", write)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / "a.rec", tmp_path / "out")
        monkeypatch.undo()
        times = [path.stat().st_mtime_ns for path in written]
        assert len(files_of(tmp_path / "out")) == 10
        unpack(tmp_path / "a.rec", tmp_path / "out")
        assert files_of(tmp_path / "out") == files
        assert [path.stat().st_mtime_ns for path in written] == times
        assert [path.name for path in (tmp_path / "out").glob(".*")] == [".unpacked.json"]

    @pytest.mark.parametrize("content", [b"other", None])
    def test_a_changed_file_is_not_replaced(self, tmp_path: Path, content: bytes | None) -> None:
        images = write_three(tmp_path / "a.rec")
        unpack(tmp_path / "a.rec", tmp_path / "out")
        path = tmp_path / "out" / "000001" / "2.jpg"
        changed = content or images[1][:-1] + b"x"
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"2\.jpg: is there with another content; remove it"):
            unpack(tmp_path / "a.rec", tmp_path / "out")
        assert path.read_bytes() == changed

    @pytest.mark.parametrize("mark", [None, "", "{", "[]", '{"fingerprint": "x"}', "x" * 10_000])
    def test_folders_of_others_are_refused(self, tmp_path: Path, mark: str | None) -> None:
        write_three(tmp_path / "a.rec")
        write_files(tmp_path / "out", {"000000/mine.png": b"mine"})
        if mark is not None:
            (tmp_path / "out" / ".unpacked.json").write_text(mark)
        with pytest.raises(DataError, match=r"out: is not empty, and holds no unpacking of this file|is more than"):
            unpack(tmp_path / "a.rec", tmp_path / "out")
        assert files_of(tmp_path / "out") == {"000000/mine.png": b"mine"}

    def test_an_unpacking_of_another_file_is_not_mixed_in(self, tmp_path: Path) -> None:
        write_three(tmp_path / "a.rec")
        write_faces(tmp_path / "b.rec")
        unpack(tmp_path / "a.rec", tmp_path / "out")
        before = files_of(tmp_path / "out")
        with pytest.raises(DataError, match="holds no unpacking of this file; name another folder"):
            unpack(tmp_path / "b.rec", tmp_path / "out")
        (tmp_path / "a.identities.txt").write_text("ann\nbo\n")
        with pytest.raises(DataError, match="holds no unpacking of this file; name another folder"):
            unpack(tmp_path / "a.rec", tmp_path / "out")
        assert files_of(tmp_path / "out") == before

    def test_a_target_that_is_a_file(self, tmp_path: Path) -> None:
        write_three(tmp_path / "a.rec")
        (tmp_path / "out").write_text("")
        with pytest.raises(DataError, match="out: cannot be used as a folder: Not a directory"):
            unpack(tmp_path / "a.rec", tmp_path / "out")


@pytest.mark.real
def test_genuine_file(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "recordio" / "faceid25-testing.rec"
    assert unpack(source, tmp_path / "out") == len(RecordFile(source))
    listed = [line.split("\t")[2] for line in source.with_suffix(".lst").read_text().splitlines()]
    assert sorted(files_of(tmp_path / "out")) == sorted(listed)
