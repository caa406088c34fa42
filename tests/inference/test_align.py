"""Aligning a folder: its crops and tables, going on after an interruption, and what is refused."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.core.files import locked_folder
from gkd.data import FaceFolder, PairSet
from gkd.data.alignment import align_face, template
from gkd.data.pair_lists import read_lfw_pairs
from gkd.inference import align_photo
from gkd.inference.align import align_folder
from gkd.inference.align_photo import PhotoOutcome, read_photo
from gkd.inference.align_photos import photo_outcomes
from tests.data.faces import make_image
from tests.inference.photos import PHOTOS, landmark_row, write_landmarks, write_photos


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of photos as they are read from now on."""
    names: list[str] = []

    def read(path: Path) -> object:
        names.append(path.name)
        return read_photo(path)

    monkeypatch.setattr(align_photo, "read_photo", read)
    return names


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.fixture
def landmarks(tmp_path: Path) -> Path:
    return write_landmarks(tmp_path / "landmarks.csv")


class TestOutput:
    def test_crops_mirror_the_folders(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        report = align_folder(photos, tmp_path / "out", landmarks=landmarks, format="png")
        assert (report.num_photos, report.num_faces, report.num_not_found) == (4, 4, 0)
        for name in PHOTOS:
            crop = cv2.imread(str((tmp_path / "out" / name).with_suffix(".png")))
            assert crop is not None
            assert np.array_equal(crop, align_face(read_photo(photos / name), template() + 10))

    def test_the_table_reads_as_landmarks(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        align_folder(photos, tmp_path / "out", landmarks=landmarks, format="png")
        rows = table(tmp_path / "out" / "faces.csv")
        assert [row["photo"] for row in rows] == list(PHOTOS)
        assert [rows[0][key] for key in ("face", "score", "crop")] == ["1", "", "ann/1.png"]
        assert float(rows[0]["x1"]) == pytest.approx(48.2946, abs=1e-3)
        align_folder(photos, tmp_path / "again", landmarks=tmp_path / "out" / "faces.csv", format="png", size=128)
        crop = cv2.imread(str(tmp_path / "again" / "ann" / "2.png"))
        assert crop is not None
        assert crop.shape == (128, 128, 3)

    def test_identity_folders_stay_readable(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        (photos / "top.jpg").unlink()
        align_folder(photos, tmp_path / "out", landmarks=landmarks)
        assert FaceFolder(tmp_path / "out").identity_names == ("ann", "bob")

    def test_jpeg_quality(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        sizes = []
        for quality in (30, 95):
            align_folder(photos, tmp_path / str(quality), landmarks=landmarks, quality=quality)
            sizes.append((tmp_path / str(quality) / "top.jpg").stat().st_size)
        assert sizes[0] < sizes[1]

    def test_all_faces(self, photos: Path, tmp_path: Path) -> None:
        rows = [landmark_row("ann/1.jpg"), landmark_row("ann/1.jpg", 2, 20.0), landmark_row("top.jpg")]
        landmarks = write_landmarks(tmp_path / "two.csv", rows)
        report = align_folder(photos, tmp_path / "all", landmarks=landmarks, faces="all")
        assert (report.num_faces, report.num_not_found) == (3, 2)
        crops = [row["crop"] for row in table(tmp_path / "all" / "faces.csv")]
        assert crops == ["ann/1_face1.jpg", "ann/1_face2.jpg", "top_face1.jpg"]
        report = align_folder(photos, tmp_path / "only", landmarks=landmarks, faces="only")
        assert (report.num_faces, report.num_not_found) == (1, 3)
        why = {row["photo"]: row["why"] for row in table(tmp_path / "only" / "not_found.csv")}
        assert why["ann/1.jpg"] == "2 faces, but only one is wanted"
        assert why["bob/1.jpg"] == "no landmarks given"

    def test_exif_orientation_is_applied(self, tmp_path: Path) -> None:
        encoded = make_image(1, (20, 30), ".jpg")
        exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (tmp_path / "plain.jpg").write_bytes(encoded)
        (tmp_path / "turned.jpg").write_bytes(encoded[:2] + segment + encoded[2:])
        plain, turned = read_photo(tmp_path / "plain.jpg"), read_photo(tmp_path / "turned.jpg")
        assert np.array_equal(turned, np.rot90(plain, -1))


class TestFaults:
    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"", "the photo is empty"),
            (b"<html>", "not a JPEG, PNG, BMP or WebP image"),
            (make_image(0, (140, 160), ".jpg")[:3000], "the photo is cut short"),
            (b"\xff\xd8\xff\xd9", "the photo's header is damaged"),
            (make_image(0, (12, 12), ".jpg"), "the landmarks lie outside the photo of 12x12 pixels"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0", "65536x65536 pixels are more than the 120,000,000"),
        ],
    )
    def test_bad_photos_are_listed(
        self, photos: Path, landmarks: Path, tmp_path: Path, content: bytes, why: str
    ) -> None:
        (photos / "bob" / "1.jpg").write_bytes(content)
        report = align_folder(photos, tmp_path / "out", landmarks=landmarks)
        assert (report.num_faces, report.num_not_found) == (3, 1)
        (row,) = table(tmp_path / "out" / "not_found.csv")
        assert row["photo"] == "bob/1.jpg"
        assert why in row["why"]
        assert not (tmp_path / "out" / "bob").exists()

    def test_none_at_all_is_an_error(self, photos: Path, tmp_path: Path) -> None:
        landmarks = write_landmarks(tmp_path / "l.csv", [landmark_row("gone.jpg")])
        with pytest.raises(DataError, match=r"none of 4 photos could be aligned; the first, ann/1\.jpg: no landmarks"):
            align_folder(photos, tmp_path / "out", landmarks=landmarks)
        why = {row["photo"]: row["why"] for row in table(tmp_path / "out" / "not_found.csv")}
        assert why["gone.jpg"] == "landmarks, but no such photo"
        assert len(why) == 5

    def test_two_photos_of_one_crop(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        (photos / "ann" / "1.png").write_bytes(make_image(5))
        with pytest.raises(DataError, match=r"ann/1\.jpg and ann/1\.png would be one crop; rename one"):
            align_folder(photos, tmp_path / "out", landmarks=landmarks)
        assert not (tmp_path / "out").exists()

    def test_names_that_no_table_holds(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        (photos / "\udcff.jpg").write_bytes(make_image(5))
        with pytest.raises(DataError, match="is not UTF-8; rename the file"):
            align_folder(photos, tmp_path / "out", landmarks=landmarks)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"size": 5000}, "--size: must be 16 to 1024"),
            ({"quality": 0}, "--quality: must be 1 to 100, got 0"),
            ({"num_workers": 0}, "--workers: must be 1 to 256, got 0"),
            ({"format": "gif"}, "--format: must be one of jpg, png, got 'gif'"),
            ({"faces": "best"}, "--faces: must be one of largest, center, all, only, got 'best'"),
            ({"min_score": 0.5}, "--min-score: belongs to --detector"),
            ({"detector": "a.onnx"}, "give either --landmarks or --detector"),
            ({"landmarks": None}, "give either --landmarks or --detector"),
        ],
    )
    def test_settings(
        self, photos: Path, landmarks: Path, tmp_path: Path, settings: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            align_folder(photos, tmp_path / "out", **{"landmarks": landmarks, **settings})  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists()

    def test_folders(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="none: no such folder"):
            align_folder(tmp_path / "none", tmp_path / "out", landmarks=landmarks)
        for out in (photos, photos / "crops", tmp_path):
            with pytest.raises(DataError, match="crops would be taken for photos"):
                align_folder(photos, out, landmarks=landmarks)
        with pytest.raises(DataError, match=r"landmarks\.csv: is a file, but a folder is needed"):
            align_folder(photos, landmarks, landmarks=landmarks)
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="empty: holds no photos"):
            align_folder(tmp_path / "empty", tmp_path / "out", landmarks=landmarks)


class TestGoingOn:
    def test_finished_photos_are_not_read_again(
        self, photos: Path, landmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        first = align_folder(photos, out, landmarks=landmarks)
        before, reads = content_of(out), count_reads(monkeypatch)
        assert align_folder(photos, out, landmarks=landmarks) == first
        assert not reads
        assert content_of(out) == before
        (out / "ann" / "1.jpg").unlink()
        (photos / "top.jpg").write_bytes(make_image(77, (150, 150), ".jpg"))
        align_folder(photos, out, landmarks=landmarks)
        assert reads == ["1.jpg", "top.jpg"]

    def test_an_interruption(
        self, photos: Path, landmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        align_folder(photos, tmp_path / "whole", landmarks=landmarks)
        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            reads: list[Path] = []

            def stop_at_third(path: Path) -> object:
                reads.append(path)
                if len(reads) == 3:
                    raise KeyboardInterrupt
                return read_photo(path)

            patch.setattr(align_photo, "read_photo", stop_at_third)
            with pytest.raises(KeyboardInterrupt):
                align_folder(photos, out, landmarks=landmarks)
        assert not (out / "faces.csv").exists()
        journal = out / "align.jsonl"
        journal.write_bytes(journal.read_bytes() + b'{"photo": "bob/')
        names = count_reads(monkeypatch)
        align_folder(photos, out, landmarks=landmarks)
        assert names == ["1.jpg", "top.jpg"], "those of bob and the top alone are left"
        assert content_of(out) == content_of(tmp_path / "whole")

    def test_a_changed_photo_loses_its_old_crops(
        self, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [landmark_row("top.jpg"), landmark_row("top.jpg", 2), landmark_row("ann/1.jpg")]
        landmarks, out = write_landmarks(tmp_path / "l.csv", rows), tmp_path / "out"
        align_folder(photos, out, landmarks=landmarks, faces="all")
        assert (out / "top_face2.jpg").exists()
        (photos / "top.jpg").write_bytes(b"damaged")
        align_folder(photos, out, landmarks=landmarks, faces="all")
        assert not list(out.glob("top*"))

    def test_photos_that_are_gone_are_told(
        self, photos: Path, landmarks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        align_folder(photos, tmp_path / "out", landmarks=landmarks)
        (photos / "top.jpg").unlink()
        with caplog.at_level(logging.WARNING):
            align_folder(photos, tmp_path / "out", landmarks=landmarks)
        assert "1 photos of an earlier run are gone; their crops stay" in caplog.text

    def test_other_settings_are_refused(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        align_folder(photos, out, landmarks=landmarks)
        before = content_of(out)
        with pytest.raises(DataError, match=r"other settings \(quality 95 there, 90 now; size 112 there, 128 now\)"):
            align_folder(photos, out, landmarks=landmarks, size=128, quality=90)
        write_landmarks(landmarks, [landmark_row("top.jpg")])
        with pytest.raises(DataError, match=r"other settings \(landmarks_sha256"):
            align_folder(photos, out, landmarks=landmarks)
        assert content_of(out) == before

    def test_a_folder_of_other_things_is_refused(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(DataError, match="out: is not empty and no alignment was made there"):
            align_folder(photos, tmp_path / "out", landmarks=landmarks)
        assert content_of(tmp_path / "out") == {"mine.txt": b"mine"}

    @pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000])
    def test_damaged_settings(self, photos: Path, landmarks: Path, tmp_path: Path, content: str) -> None:
        align_folder(photos, tmp_path / "out", landmarks=landmarks)
        (tmp_path / "out" / "align.json").write_text(content)
        with pytest.raises(DataError, match=r"align\.json: is damaged"):
            align_folder(photos, tmp_path / "out", landmarks=landmarks)

    @pytest.mark.parametrize(
        "line",
        ["", "[]", "{}", '{"photo": "a"}', '{"photo":"top.jpg","stamp":[1,2],"faces":[["../x",[],1]],"why_not":""}'],
    )
    def test_a_damaged_journal(self, photos: Path, landmarks: Path, tmp_path: Path, line: str) -> None:
        align_folder(photos, tmp_path / "out", landmarks=landmarks)
        journal = tmp_path / "out" / "align.jsonl"
        journal.write_text(line + "\n" + journal.read_text())
        with pytest.raises(DataError, match=r"align\.jsonl: line 1: is damaged"):
            align_folder(photos, tmp_path / "out", landmarks=landmarks)

    def test_a_journal_cannot_name_files_elsewhere(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        align_folder(photos, out, landmarks=landmarks)
        (tmp_path / "precious.jpg").write_text("mine")
        points = [[1, 2]] * 5
        line = {"photo": "top.jpg", "stamp": [1, 2], "faces": [["../precious.jpg", points, 1]], "why_not": ""}
        (out / "align.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(DataError, match="is damaged"):
            align_folder(photos, out, landmarks=landmarks)
        assert (tmp_path / "precious.jpg").exists()

    def test_two_at_once(self, photos: Path, landmarks: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        align_folder(photos, out, landmarks=landmarks)
        with (
            locked_folder(out, "OUT", "a test is running"),
            pytest.raises(GkdError, match="another alignment is running in"),
        ):
            align_folder(photos, out, landmarks=landmarks)


class TestProcesses:
    def test_they_change_nothing(self, tmp_path: Path) -> None:
        names = [f"p{number % 3}/{number:02d}.jpg" for number in range(20)]
        photos = write_photos(tmp_path / "photos", names)
        (photos / names[7]).write_bytes(b"damaged")
        landmarks = write_landmarks(tmp_path / "l.csv", [landmark_row(name) for name in names])
        one = align_folder(photos, tmp_path / "one", landmarks=landmarks)
        assert align_folder(photos, tmp_path / "two", landmarks=landmarks, num_workers=2) == one
        assert content_of(tmp_path / "one") == content_of(tmp_path / "two")

    def test_one_that_dies_is_told(self) -> None:
        photos = [f"{number}.jpg" for number in range(9)]
        with (
            pytest.raises(DataError, match="a process that aligned photos died"),
            photo_outcomes(make_deadly, photos, 2) as outcomes,
        ):
            list(outcomes)


def make_deadly() -> Callable[[str], PhotoOutcome]:
    return lambda photo: os._exit(3)


@pytest.mark.real
class TestReal:
    def test_the_crops_of_lfw_come_out_again(self, real_data: Path, tmp_path: Path) -> None:
        photos = real_data / "lfw" / "photos"
        align_folder(photos, tmp_path / "out", landmarks=photos / "landmarks.csv", format="png")
        pairs = read_lfw_pairs(real_data / "lfw" / "pairs.txt").pairs
        names = [name for pair in pairs for name in (pair.left, pair.right)]
        images = dict(zip(names, PairSet.load(real_data / "lfw" / "lfw.bin").images, strict=True))
        differences = []
        for row in table(tmp_path / "out" / "faces.csv"):
            expected = images.get(row["photo"].removesuffix(".jpg"))
            if expected is not None:
                crop = cv2.imread(str(tmp_path / "out" / row["crop"]))
                known = cv2.imdecode(np.frombuffer(expected, np.uint8), cv2.IMREAD_COLOR)
                assert crop is not None
                assert known is not None
                differences.append(float(np.abs(crop.astype(np.float64) - known).mean()))
        assert len(differences) == 122
        assert np.mean(differences) < 2.0
        assert max(differences) < 4.0

    def test_every_face_is_found(self, real_data: Path, tmp_path: Path) -> None:
        photos = real_data / "lfw" / "photos"
        report = align_folder(photos, tmp_path / "out", detector=real_data / "models" / "yunet_dynamic.onnx")
        assert report.num_faces >= 198
        given = {row["path"]: row for row in table(photos / "landmarks.csv")}
        wrong = 0
        for row in table(tmp_path / "out" / "faces.csv"):
            known = given[row["photo"]]
            distance = np.hypot(float(row["x3"]) - float(known["nose_x"]), float(row["y3"]) - float(known["nose_y"]))
            wrong += bool(distance > 10)
        assert wrong <= 1, "another face than the given one was taken"
