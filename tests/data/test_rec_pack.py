"""Packing folders: what is written, what is checked and resized, bad images, and what interruptions leave."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data import FaceFolder, RecordFile
from gkd.data.image_fit import ImageFit
from gkd.data.image_header import image_size
from gkd.data.rec_pack import Packed, pack
from gkd.data.rec_unpack import unpack
from tests.conftest import ROOT
from tests.data.faces import make_image
from tests.data.peer_reader import read_like_peers
from tests.data.test_record_writer import nasty_bodies


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """The files that are not hidden."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def make_people(num_people: int = 4, num_images: int = 6) -> dict[str, bytes]:
    suffixes = (".png", ".jpg", ".bmp", ".webp")
    return {
        f"person{person}/{image}{suffixes[image % 4]}": make_image(10 * person + image, suffix=suffixes[image % 4])
        for person in range(num_people)
        for image in range(num_images)
    }


def jpeg_with(payload: bytes) -> bytes:
    """A JPEG whose comment holds any bytes."""
    image = make_image(0, suffix=".jpg")
    return image[:2] + b"\xff\xfe" + (len(payload) + 2).to_bytes(2, "big") + payload + image[2:]


class TestFiles:
    @pytest.mark.parametrize("num_workers", [1, 3])
    def test_there_and_back(self, tmp_path: Path, num_workers: int) -> None:
        nasty = {f"magic/{number:02}.jpg": jpeg_with(body) for number, body in enumerate(nasty_bodies())}
        files = {**make_people(), **nasty, "é ü/a\udcff b.jpg": jpeg_with(b"x")}
        folder = write_files(tmp_path / "in", files)
        packed = pack(folder, tmp_path / "a.rec", num_workers=num_workers)
        assert packed == Packed(num_images=len(files), num_identities=6, num_skipped=0)
        faces = RecordFile(tmp_path / "a.rec")
        assert list(faces) == list(FaceFolder(folder))
        assert [body for _, _, body in read_like_peers(tmp_path / "a.rec")] == [body for body, _ in faces]
        assert unpack(tmp_path / "a.rec", tmp_path / "out") == len(files)
        assert files_of(tmp_path / "out") == files

    def test_the_list_is_that_of_im2rec(self, tmp_path: Path) -> None:
        pack(write_files(tmp_path / "in", make_people(2, 2)), tmp_path / "a.rec")
        lines = (tmp_path / "a.lst").read_text().splitlines()
        assert lines == [
            "1\t0.000000\tperson0/0.png",
            "2\t0.000000\tperson0/1.jpg",
            "3\t1.000000\tperson1/0.png",
            "4\t1.000000\tperson1/1.jpg",
        ]
        assert (tmp_path / "property").read_text() == "2,16,16\n"
        assert (tmp_path / "a.identities.txt").read_text() == "person0\nperson1\n"

    def test_workers_change_nothing(self, tmp_path: Path) -> None:
        folder = write_files(tmp_path / "in", make_people())
        for num_workers in (1, 2, 5):
            pack(folder, tmp_path / str(num_workers) / "a.rec", size=(8, 12), num_workers=num_workers)
        assert files_of(tmp_path / "1") == files_of(tmp_path / "2") == files_of(tmp_path / "5")


class TestSizes:
    def test_only_other_sizes_are_resized(self, tmp_path: Path) -> None:
        pixels = np.full((40, 20, 3), (10, 100, 200), dtype=np.uint8)
        large = bytes(cv2.imencode(".png", pixels)[1])
        small = bytes(cv2.imencode(".png", pixels[:4, :4])[1])
        files = {"a/0.png": large, "a/1.png": make_image(1, (16, 12)), "a/2.png": small}
        pack(write_files(tmp_path / "in", files), tmp_path / "a.rec", size=(16, 12))
        bodies = [body for body, _ in RecordFile(tmp_path / "a.rec")]
        assert bodies[1] == files["a/1.png"]
        for body in (bodies[0], bodies[2]):
            assert body.startswith(b"\xff\xd8\xff")
            assert image_size(body) == (16, 12)
            decoded = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
            assert np.abs(decoded.astype(int) - (10, 100, 200)).max() <= 3
        assert (tmp_path / "property").read_text() == "1,16,12\n"

    def test_quality(self, tmp_path: Path) -> None:
        folder = write_files(tmp_path / "in", {"a/0.png": make_image(0, (64, 64))})
        lengths = []
        for quality in (20, 95):
            pack(folder, tmp_path / "a.rec", size=(32, 32), quality=quality)
            lengths.append(len(RecordFile(tmp_path / "a.rec")[0][0]))
        assert lengths[0] * 2 < lengths[1]

    @pytest.mark.parametrize("odd", [0, 3, 5])
    def test_the_odd_one_is_named_wherever_it_stands(self, tmp_path: Path, odd: int) -> None:
        files = {f"a/{number}.png": make_image(number, (16, 20 if number == odd else 16)) for number in range(6)}
        folder = write_files(tmp_path / "in", files)
        with pytest.raises(DataError) as caught:
            pack(folder, tmp_path / "a.rec")
        assert str(caught.value) == (
            f"{folder}/a/{odd}.png: the image is 16x20 pixels (height x width), but the others are 16x16; align the "
            "faces first, or give --size"
        )
        assert pack(folder, tmp_path / "a.rec", on_bad="skip") == Packed(5, 1, 1)

    @pytest.mark.parametrize(("size", "quality"), [((0, 5), 95), ((1 << 14, 1 << 13), 95), ((8, 8), 0), ((8, 8), 101)])
    def test_settings(self, tmp_path: Path, size: tuple[int, int], quality: int) -> None:
        with pytest.raises(ConfigError, match=r"can be written|goes from 1 to 100"):
            pack(tmp_path, tmp_path / "a.rec", size=size, quality=quality)


class TestBadImages:
    GOOD = make_image(0, suffix=".jpg")
    BAD = {
        "b/text.jpg": (b"<html>", r"not a JPEG, PNG, BMP or WebP image \(begins with b'<html>'\)"),
        "b/empty.jpg": (b"", "the image is empty"),
        "b/cut.jpg": (GOOD[:-20], "the jpeg image is cut short"),
        "c/head.jpg": (GOOD[:12], r"the jpeg image's header is damaged \(size None\)"),
        "d/wide.jpg": (make_image(1, (16, 17)), "the image is 16x17 pixels"),
    }

    def make_folder(self, path: Path) -> Path:
        good = {
            name: make_image(number)
            for number, name in enumerate(["a/0.png", "b/a.png", "b/z.png", "d/0.png", "e/0.png"])
        }
        return write_files(path, {**good, **{name: content for name, (content, _) in self.BAD.items()}})

    @pytest.mark.parametrize("name", BAD)
    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_the_first_one_stops(self, tmp_path: Path, name: str, num_workers: int) -> None:
        folder = write_files(
            tmp_path / "in", {"a/0.png": make_image(0), "a/1.png": make_image(1), name: self.BAD[name][0]}
        )
        with pytest.raises(DataError, match=f"{re.escape(str(folder / name))}: {self.BAD[name][1]}"):
            pack(folder, tmp_path / "a.rec", num_workers=num_workers)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, num_workers: int) -> None:
        """An identity that loses all its images takes no label."""
        folder = self.make_folder(tmp_path / "in")
        assert pack(folder, tmp_path / "a.rec", on_bad="skip", num_workers=num_workers) == Packed(5, 4, 5)
        faces = RecordFile(tmp_path / "a.rec")
        assert [label for _, label in faces] == [0, 1, 1, 2, 3]
        assert faces.identity_names == ("a", "b", "d", "e")
        with (tmp_path / "a.skipped.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["path", "reason"]
        assert sorted(row[0] for row in rows[1:]) == sorted(self.BAD)
        for path, reason in rows[1:]:
            assert re.match(self.BAD[path][1], reason)
        assert "left out 5 of 10 images" in caplog.text
        assert "left out: " + str(folder / "b/cut.jpg") in caplog.text
        assert "1 identities have no good image and are left out: c" in caplog.text
        unpack(tmp_path / "a.rec", tmp_path / "out")
        assert sorted(files_of(tmp_path / "out")) == ["a/0.png", "b/a.png", "b/z.png", "d/0.png", "e/0.png"]

    def test_the_table_of_an_earlier_pack_goes(self, tmp_path: Path) -> None:
        folder = self.make_folder(tmp_path / "in")
        pack(folder, tmp_path / "a.rec", on_bad="skip")
        for name in self.BAD:
            (folder / name).unlink()
        assert pack(folder, tmp_path / "a.rec", on_bad="skip") == Packed(5, 4, 0)
        assert not (tmp_path / "a.skipped.csv").exists()

    def test_nothing_good(self, tmp_path: Path) -> None:
        folder = write_files(tmp_path / "in", {"a/0.jpg": b"", "b/0.jpg": b"x"})
        with pytest.raises(DataError, match="no images were written"):
            pack(folder, tmp_path / "a.rec", on_bad="skip")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_decoding_finds_more(self, tmp_path: Path) -> None:
        image = make_image(0)
        broken = image[:60] + bytes(60) + image[120:]
        folder = write_files(tmp_path / "in", {"a/0.png": make_image(1), "a/1.png": broken})
        assert pack(folder, tmp_path / "a.rec") == Packed(2, 1, 0)
        with pytest.raises(DataError, match=r"1\.png: the png image is damaged"):
            pack(folder, tmp_path / "a.rec", decode_check=True)

    def test_names_that_no_list_can_hold(self, tmp_path: Path) -> None:
        folder = write_files(tmp_path / "in", {"a/x\ty.png": make_image(0)})
        with pytest.raises(DataError, match=r"x\\ty.png': the file's name has a control character; rename it"):
            pack(folder, tmp_path / "a.rec")


def test_a_killed_worker_is_told_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path / "in", make_people(2, 100))
    whole = ImageFit.__call__

    def die(self: ImageFit, index: int) -> tuple[bytes, str]:
        if index == 130:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, index)

    monkeypatch.setattr(ImageFit, "__call__", die)
    with pytest.raises(DataError, match=f"{re.escape(FaceFolder(folder).describe(130))}: .* was killed by SIGKILL"):
        pack(folder, tmp_path / "a.rec", num_workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


KILLED = """
import sys, time
from multiprocessing import active_children
from gkd.data import rec_pack
whole = rec_pack.RecordWriter.write
def write(self, label, encoded, source=""):
    whole(self, label, encoded, source)
    if self.num_images == 150:
        print(*(child.pid for child in active_children()), flush=True)
        time.sleep(600)
rec_pack.RecordWriter.write = write
rec_pack.pack(sys.argv[1], sys.argv[2], num_workers=2)
"""


def test_a_killed_pack_leaves_no_file_and_no_worker(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "in", make_people(3, 200))
    out = tmp_path / "out" / "a.rec"
    command = [sys.executable, "-c", KILLED, str(folder), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        process.kill()
    left = [path.name for path in out.parent.iterdir()]
    assert len(workers) == 2
    assert left
    assert all(re.fullmatch(r"\.a\.[0-9a-f]{8}\.writing\.(rec|lst)", name) for name in left)
    for _ in range(200):
        if not any(_is_running(worker) for worker in workers):
            break
        time.sleep(0.05)
    assert not any(_is_running(worker) for worker in workers)
    pack(folder, out)
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "a.identities.txt",
        "a.idx",
        "a.lst",
        "a.rec",
        "property",
    ]
    assert list(RecordFile(out)) == list(FaceFolder(folder))


def _is_running(process_id: int) -> bool:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.real
def test_genuine_folder(real_data: Path, tmp_path: Path) -> None:
    assert pack(real_data / "celeba", tmp_path / "a.rec", num_workers=2) == Packed(4892, 228, 0)
    assert RecordFile(tmp_path / "a.rec").fingerprint == FaceFolder(real_data / "celeba").fingerprint
