"""What JPEG loses, beside a real encoder and decoder."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from gkd.data.augment import Jpeg
from gkd.data.augment.jpeg_loss import _CHROMA, _LUMA, lose_by_jpeg, step_table
from gkd.data.synthetic import draw_face
from tests.data.augment.reference import Pixels, draws_for, to_rows


def compress(image: Pixels, quality: int) -> Pixels:
    """Through OpenCV's encoder and decoder, 4:2:0."""
    bgr = np.ascontiguousarray(image[..., ::-1])
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[..., ::-1]


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    drawn = np.stack([draw_face(0, person, 0) for person in range(4)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


@pytest.mark.parametrize("size", [(112, 112), (97, 90), (8, 17), (1, 1)])
@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
def test_it_is_that_of_libjpeg(faces: torch.Tensor, quality: int, size: tuple[int, int]) -> None:
    images = faces[:, :, 40 : 40 + size[0], 40 : 40 + size[1]] if size[0] < 20 else faces[:, :, : size[0], : size[1]]
    result = np.stack(to_rows(lose_by_jpeg(images, np.full(4, quality)))).astype(int)
    apart = np.abs(np.stack([compress(image, quality) for image in to_rows(images)]) - result)
    lost = np.abs(result - np.stack(to_rows(images))).mean()
    # An encoder's transform rounds in between, which tips a coefficient now and then.
    assert apart.mean() < max(0.25 * lost, 0.8)
    assert (apart > 2).mean() < 0.06


def test_step_tables() -> None:
    """Quality 50 is the standard's table; 100 rounds to whole numbers; 1 is as coarse as bytes allow."""
    tables = step_table(_LUMA, np.array([50, 100, 1, 25, 75]))
    assert np.array_equal(tables[0], _LUMA)
    assert (tables[1] == 1).all()
    assert (tables[2] == 255).all()
    assert np.array_equal(tables[3], np.minimum(2 * _LUMA, 255))
    assert tables[4].tolist()[:8] == [8, 6, 5, 8, 12, 20, 26, 31]
    assert len(_LUMA) == len(_CHROMA) == 64


def test_tables_are_those_that_an_encoder_writes(faces: torch.Tensor) -> None:
    for quality in (10, 42, 77, 95):
        image = np.ascontiguousarray(to_rows(faces)[0])
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        place = encoded.index(b"\xff\xdb") + 5
        # A file has the steps in zigzag order.
        assert sorted(encoded[place : place + 64]) == sorted(step_table(_LUMA, np.array([quality]))[0].tolist())


def test_each_image_has_its_own_quality(faces: torch.Tensor) -> None:
    qualities = np.array([10, 95, 40, 70])
    together = lose_by_jpeg(faces, qualities)
    for row, quality in enumerate(qualities):
        assert torch.equal(together[row : row + 1], lose_by_jpeg(faces[row : row + 1], np.array([quality])))
    lost = (together.int() - faces.int()).abs().float().mean(dim=(1, 2, 3))
    assert lost[0] > 2 * lost[1]


@pytest.mark.parametrize(("strength", "worst"), [(0.0, 95), (0.5, 53), (1.0, 10)])
def test_the_range_of_qualities(strength: float, worst: int) -> None:
    qualities = Jpeg(strength=strength).quality(draws_for(5000, "jpeg"))
    assert qualities.max() == 95
    assert qualities.min() == worst


def test_compressing_again_loses_little(faces: torch.Tensor) -> None:
    once = lose_by_jpeg(faces, np.full(4, 60))
    twice = lose_by_jpeg(once, np.full(4, 60))
    first = (once.int() - faces.int()).abs().float().mean()
    assert (twice.int() - once.int()).abs().float().mean() < 0.35 * first


def test_extreme_pixels_stay_in_range() -> None:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.choice([0, 255], (4, 3, 64, 64)).astype(np.uint8))
    for quality in (1, 10, 100):
        lossy = lose_by_jpeg(images, np.full(4, quality))
        for image, result in zip(to_rows(images), to_rows(lossy), strict=True):
            apart = np.abs(compress(image, quality).astype(int) - result)
            assert apart.mean() < 4
