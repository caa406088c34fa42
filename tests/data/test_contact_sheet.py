"""Many images in one picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import ConfigError
from gkd.data.contact_sheet import draw_sheet, save_sheet


def _image(number: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.full((height, width, 3), 10 * number, dtype=np.uint8)


def test_images_stand_in_rows() -> None:
    sheet = draw_sheet([_image(number) for number in range(5)], columns=3)
    assert (sheet.shape, sheet.dtype) == ((2 * 24 + 4, 3 * 34 + 4, 3), np.uint8)
    for number in range(5):
        top, left = 4 + number // 3 * 24, 4 + number % 3 * 34
        assert np.all(sheet[top : top + 20, left : left + 30] == 10 * number)
    assert np.all(sheet[28:, 72:] == 255)  # the empty tile
    assert np.all(sheet[:4] == 255)


def test_small_images_stand_in_the_middle_and_colours_stay() -> None:
    small = np.zeros((10, 10, 3), dtype=np.uint8)
    small[..., 0] = 200
    sheet = draw_sheet([_image(1), small])
    assert sheet.shape == (28, 72, 3)
    assert np.all(sheet[9:19, 48:58] == (200, 0, 0))
    assert np.all(sheet[4:9, 38:68] == 255)


def test_captions() -> None:
    images = [_image(number, 30, 60) for number in range(4)]
    with_text = draw_sheet(images, captions=["one", "", "a caption far too long for its tile", "é"], columns=2)
    assert with_text.shape == (2 * 48 + 4, 2 * 64 + 4, 3)
    assert np.any(with_text[34:48, 4:64] < 255)
    assert np.all(with_text[34:48, 68:128] == 255)
    assert np.all(with_text[82:96, 64:68] == 255)  # the long one does not run into its neighbour
    assert np.any(with_text[82:96, 68:128] < 255)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one image"):
        draw_sheet([])
    with pytest.raises(ConfigError, match="2 images has 1 captions"):
        draw_sheet([_image(0), _image(1)], captions=["a"])
    with pytest.raises(ConfigError, match="at least 1 column, got 0"):
        draw_sheet([_image(0)], columns=0)
    with pytest.raises(ConfigError, match=r"image 1 is float64 \(2, 2, 3\)"):
        draw_sheet([_image(0), np.zeros((2, 2, 3))])
    with pytest.raises(ConfigError, match=r"must end in \.png or \.jpg"):
        save_sheet(_image(0), tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_sheets_are_written(tmp_path: Path, suffix: str) -> None:
    sheet = np.zeros((20, 30, 3), dtype=np.uint8)
    sheet[..., 0] = 200
    save_sheet(sheet, tmp_path / "new" / f"a{suffix}")
    read = cv2.cvtColor(cv2.imread(str(tmp_path / "new" / f"a{suffix}")), cv2.COLOR_BGR2RGB)
    assert np.abs(read.astype(int) - sheet).max() <= (0 if suffix == ".png" else 4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"a{suffix}"]
