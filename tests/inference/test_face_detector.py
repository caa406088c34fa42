"""YuNet on real photos, files that are no detector, and the choice among several faces."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data.alignment import template
from gkd.data.landmarks import read_landmarks
from gkd.inference.face_choice import FACE_CHOICES, SeveralFacesError
from gkd.inference.face_detector import FoundFace, YuNet, face_of_points

EXTENT = (100, 200)  # height and width


def face(x: float, y: float, side: float, score: float = 0.9) -> FoundFace:
    """A square face with its centre at (x, y)."""
    return FoundFace(template(), (x - side / 2, y - side / 2, side, side), score)


SUBJECT, STRANGER, CHILD = face(110, 60, 40), face(10, 50, 60), face(95, 50, 10)


@pytest.mark.parametrize(
    ("name", "faces", "chosen"),
    [
        ("largest", [STRANGER, CHILD, SUBJECT], [SUBJECT]),
        ("largest", [STRANGER, face(190, 90, 20)], [STRANGER]),
        ("largest", [face(150, 75, 5), face(151, 75, 50)], [face(150, 75, 5)]),
        ("center", [STRANGER, SUBJECT, CHILD], [CHILD]),
        ("all", [STRANGER, SUBJECT], [STRANGER, SUBJECT]),
        ("only", [STRANGER], [STRANGER]),
    ],
)
def test_choices(name: str, faces: list[FoundFace], chosen: list[FoundFace]) -> None:
    found = FACE_CHOICES[name](faces, EXTENT)
    assert [each.box for each in found] == [each.box for each in chosen]


def test_only_one_is_wanted() -> None:
    with pytest.raises(SeveralFacesError, match="2 faces, but only one is wanted"):
        FACE_CHOICES["only"]([SUBJECT, CHILD], EXTENT)


def test_the_box_of_points() -> None:
    assert face_of_points(np.array([[1.0, 9], [4, 2], [2, 3], [3, 3], [3, 4]])).box == (1, 2, 3, 7)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07" * 500])
def test_files_that_are_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.onnx: is no"):
        YuNet(tmp_path / "a.onnx")


def test_missing_files_and_scores(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.onnx: no such file"):
        YuNet(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="--min-score: must be 0 to 1, got nan"):
        YuNet(tmp_path / "none.onnx", float("nan"))


@pytest.mark.real
class TestReal:
    def test_landmarks_at_every_size(self, real_data: Path) -> None:
        """The given landmarks are of the same network on the photos as they are, so those come out again."""
        detector, photos = YuNet(real_data / "models" / "yunet_dynamic.onnx"), real_data / "lfw" / "photos"
        errors: dict[float, list[float]] = {1.0: [], 4.0: [], 0.5: []}
        for photo, (given,) in list(read_landmarks(photos / "landmarks.csv").items())[::8]:
            pixels = read(photos / photo)
            for factor, found in errors.items():
                height, width = (round(extent * factor) for extent in pixels.shape[:2])
                faces = detector.find(np.asarray(cv2.resize(pixels, (width, height)), np.uint8))
                assert faces, f"no face in {photo} at {factor}"
                points = FACE_CHOICES["largest"](faces, (height, width))[0].points / factor
                eyes = float(np.linalg.norm(given[1] - given[0]))
                found.append(float(np.linalg.norm(points - given, axis=1).mean()) / eyes)
        assert max(errors[1.0]) < 0.01
        assert np.mean(errors[4.0]) < 0.12
        assert np.mean(errors[0.5]) < 0.12

    def test_models_of_fixed_input(self, real_data: Path) -> None:
        photo = read(next((real_data / "lfw" / "photos").glob("*/*.jpg")))
        free = YuNet(real_data / "models" / "yunet_dynamic.onnx").find(photo)
        fixed = YuNet(real_data / "models" / "yunet_640.onnx").find(photo)
        assert np.allclose(free[0].points, fixed[0].points, atol=0.5)

    def test_small_and_narrow_photos(self, real_data: Path) -> None:
        detector = YuNet(real_data / "models" / "yunet_dynamic.onnx")
        for extent in ((1, 1), (3, 200), (2000, 1), (1500, 1500)):
            assert detector.find(np.zeros((*extent, 3), np.uint8)) == []

    def test_another_network(self, real_data: Path) -> None:
        with pytest.raises(DataError, match="is no YuNet detector"):
            YuNet(real_data / "models" / "mobilefacenet128.onnx")

    def test_a_truncated_network(self, real_data: Path, tmp_path: Path) -> None:
        content = (real_data / "models" / "yunet_dynamic.onnx").read_bytes()
        (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=r"cut\.onnx: is no"):
            YuNet(tmp_path / "cut.onnx")


def read(path: Path) -> npt.NDArray[np.uint8]:
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return np.asarray(pixels, np.uint8)
