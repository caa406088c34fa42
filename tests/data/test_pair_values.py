"""Values of pairs from texts, and sharpness, against a Laplacian by loops."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data.pair_values import pair_sharpness, read_pair_values, values_path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def encoded(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_values_lie_beside_the_set() -> None:
    assert values_path(Path("data/lfw.bin"), "yaw") == Path("data/lfw.yaw.txt")


def test_numbers_and_unknown_ones(tmp_path: Path) -> None:
    values = read_pair_values(write(tmp_path / "a.txt", "1.5\n-\n -3e1 \r\n"), 3)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [1.5, np.nan, -30.0])


def test_all_wrong_lines_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "1\nleft\ninf\n2 3\n")
    with pytest.raises(DataError) as raised:
        read_pair_values(path, 4)
    text = str(raised.value)
    assert text.startswith(f"{path}: 3 lines are wrong")
    assert all(f"line {number}: " in text for number in (2, 3, 4))
    assert "a number, or - for an unknown one, is needed" in text


@pytest.mark.parametrize("num_pairs", [1, 3])
def test_another_number_of_pairs(tmp_path: Path, num_pairs: int) -> None:
    path = write(tmp_path / "a.txt", "1\n2\n")
    with pytest.raises(DataError, match=f"has 2 values, but the set has {num_pairs} pairs"):
        read_pair_values(path, num_pairs)


def test_sharpness_is_the_laplacians_variance_of_the_less_sharp_picture() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    padded = np.pad(grey.astype(np.float64), 1, mode="reflect")
    laplacian = np.zeros(grey.shape)
    for row in range(9):
        for column in range(7):
            y, x = row + 1, column + 1
            around = padded[y - 1, x] + padded[y + 1, x] + padded[y, x - 1] + padded[y, x + 1]
            laplacian[row, column] = around - 4 * padded[y, x]
    expected = np.log2(1 + np.mean((laplacian - laplacian.mean()) ** 2))
    color = np.repeat(grey[..., None], 3, axis=2)
    blurred = cv2.GaussianBlur(color, (5, 5), 2.0)
    found = pair_sharpness([encoded(color), encoded(color), encoded(blurred), encoded(color)])
    assert found.shape == (2,)
    assert found[0] == pytest.approx(expected, abs=1e-12)
    assert found[1] < found[0] - 1


def test_a_pair_with_a_broken_picture_is_unknown() -> None:
    flat = encoded(np.full((4, 4, 3), 9, np.uint8))
    found = pair_sharpness([flat, b"\xff\xd8\xff no image", flat, b"", flat, flat])
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0.0])
