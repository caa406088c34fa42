"""The picture of what a config's augmentations do."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.cli.prepare.augment_sheet import draw, draw_augmentations
from gkd.core.errors import ConfigError, DataError
from gkd.core.seed import permutation
from gkd.data import RecordFile, RecordWriter
from gkd.data.augment import AUGMENTATIONS, Augment, Cutout, Flip
from gkd.data.transforms import decode_image
from tests.data.faces import make_image, write_faces

ROW, COLUMN = 16 + 4 + 14, 16 + 4

CONFIG = """
run: {{folder: run, seed: 5}}
data:
  train: {{name: recordio, path: {path}}}
  augment: [flip, {{name: grey, probability: 0.3}}]
backbone: {{name: mobilefacenet}}
margin: arcface
optim: {{lr: 0.1}}
train: {{epochs: 1, batch_size: 4}}
"""


@pytest.fixture
def faces(tmp_path: Path) -> RecordFile:
    write_faces(tmp_path / "faces.rec")
    return RecordFile(tmp_path / "faces.rec")


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    return sheet[4 + row * ROW : 4 + row * ROW + 16, 4 + column * COLUMN : 4 + column * COLUMN + 16]


def original(faces: RecordFile, index: int) -> np.ndarray:
    return decode_image(faces[index][0], (16, 16), "face")


def test_rows_of_faces(faces: RecordFile) -> None:
    sheet = draw_augmentations(faces, Augment([Flip()], 3), 4)
    assert sheet.shape == ((4 + len(AUGMENTATIONS)) * ROW + 4, 8 * COLUMN + 4, 3)
    ids = permutation(20, 3, 0)[:4]
    num_mirrored = 0
    for row, index in enumerate(ids):
        face = original(faces, int(index))
        assert np.array_equal(tile(sheet, row, 0), face)
        for column in range(1, 8):
            is_mirrored = np.array_equal(tile(sheet, row, column), face[:, ::-1])
            assert is_mirrored or np.array_equal(tile(sheet, row, column), face)
            num_mirrored += is_mirrored
    assert 5 < num_mirrored < 23


def test_rows_of_steps_are_those_of_the_list_then_the_others(faces: RecordFile) -> None:
    sheet = draw_augmentations(faces, Augment([Cutout(probability=0.01, strength=1.0), Flip()], 3), 3)
    ids = permutation(20, 3, 0)[:3]
    for column in range(8):
        face = original(faces, int(ids[column % 3]))
        assert (tile(sheet, 3, column) == 128).all(axis=2).sum() >= 25
        assert np.array_equal(tile(sheet, 4, column), face[:, ::-1])
    assert sheet.shape[0] == (3 + len(AUGMENTATIONS)) * ROW + 4


def test_more_images_than_columns_and_than_there_are(faces: RecordFile) -> None:
    assert draw_augmentations(faces, Augment([], 0), 12).shape[0] == (12 + len(AUGMENTATIONS)) * ROW + 4
    assert draw_augmentations(faces, Augment([], 0), 99).shape[0] == (20 + len(AUGMENTATIONS)) * ROW + 4


def test_a_config_and_its_data(faces: RecordFile, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG.format(path=tmp_path / "faces.rec"))
    draw(tmp_path / "config.yaml", None, tmp_path / "a.png", 2)
    picture = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    assert np.array_equal(tile(picture, 0, 0), original(faces, int(permutation(20, 5, 0)[0])))
    assert picture.shape[0] == (2 + len(AUGMENTATIONS)) * ROW + 4


def test_other_data(tmp_path: Path) -> None:
    (tmp_path / "people" / "one").mkdir(parents=True)
    (tmp_path / "people" / "one" / "a.png").write_bytes(make_image(77))
    (tmp_path / "config.yaml").write_text(CONFIG.format(path=tmp_path / "missing.rec"))
    draw(tmp_path / "config.yaml", tmp_path / "people", tmp_path / "a.png", 8)
    picture = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    assert np.array_equal(tile(picture, 0, 0), decode_image(make_image(77), (16, 16), "face"))


def test_refusals(faces: RecordFile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^augmentations are drawn on at least 1 image, got 0$"):
        draw_augmentations(faces, Augment([], 0), 0)
    with RecordWriter(tmp_path / "bad.rec") as writer:
        writer.write(0, b"no image")
    with pytest.raises(DataError, match="not a JPEG"):
        draw_augmentations(RecordFile(tmp_path / "bad.rec"), Augment([], 0), 1)
