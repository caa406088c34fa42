"""Grey, photometric, cutout and lower_face beside loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gkd.core.errors import ConfigError
from gkd.data.augment import Cutout, Grey, LowerFace, Photometric
from tests.data.augment import reference
from tests.data.augment.reference import draws_for, textured, to_rows

SIZES = [(28, 28), (31, 22)]


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_grey(strength: float) -> None:
    images = textured(3, 31, 22)
    changed = Grey(strength=strength).change(images, draws_for(3, "grey"))
    for image, result in zip(to_rows(images), to_rows(changed), strict=True):
        assert np.abs(result - reference.grey(image, strength)).max() <= 0.5 + 1e-3


def test_full_grey_has_equal_channels() -> None:
    changed = Grey(strength=1.0).change(textured(3), draws_for(3, "grey"))
    assert (changed == changed[:, :1]).all()


@pytest.mark.parametrize("size", SIZES)
def test_photometric(size: tuple[int, int]) -> None:
    images, draws, step = textured(4, *size), draws_for(4, "photometric"), Photometric()
    factors = np.stack(step.factors(draws), axis=1)
    assert (np.abs(factors - 1) <= 0.5).all()
    assert len(np.unique(factors)) == 12
    for image, result, own in zip(to_rows(images), to_rows(step.change(images, draws)), factors, strict=True):
        assert np.abs(result - reference.photometric(image, *own)).max() <= 0.5 + 1e-3


def test_photometric_settings_switch_its_parts_off() -> None:
    draws = draws_for(50, "photometric")
    brightness, contrast, saturation = Photometric(strength=0.5, brightness=0.0, contrast=1.0).factors(draws)
    assert (brightness == 1).all()
    assert 0.45 < np.abs(contrast - 1).max() <= 0.5
    assert 0.2 < np.abs(saturation - 1).max() <= 0.25


@pytest.mark.parametrize("setting", ["brightness", "contrast", "saturation"])
def test_photometric_refuses(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^augmentation photometric: {setting} must lie between 0 and 1, got 2$"):
        Photometric(**{setting: 2})


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fill", ["grey", "random"])
def test_cutout(size: tuple[int, int], fill: str) -> None:
    images, draws, step = textured(8, *size), draws_for(8, "cutout"), Cutout(strength=0.9, fill=fill)
    (top, height), (left, width) = step.span(draws, "height", size[0]), step.span(draws, "width", size[1])
    colour = step.colour(draws)
    assert (colour == 128).all() == (fill == "grey")
    for row, (image, result) in enumerate(zip(to_rows(images), to_rows(step.change(images, draws)), strict=True)):
        expected = reference.cutout(image, top[row], left[row], height[row], width[row], colour[row])
        assert np.array_equal(result, expected)


def test_cutout_spans_lie_inside_and_reach_every_pixel() -> None:
    first, length = Cutout(strength=1.0).span(draws_for(2000, "cutout"), "height", 40)
    assert length.min() == 13
    assert length.max() == 24
    assert first.min() == 0
    assert (first + length).max() == 40


def test_cutout_refuses_a_fill() -> None:
    with pytest.raises(ConfigError, match=r"^augmentation cutout: fill must be `grey` or `random`, got `red`$"):
        Cutout(fill="red")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(112, 112), (56, 56), (37, 61)])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_lower_face(size: tuple[int, int], strength: float) -> None:
    images, draws, step = textured(2, *size), draws_for(2, "lower_face"), LowerFace(strength=strength)
    outline, colour = step.outline(draws), step.colour(draws)
    for row, (image, result) in enumerate(zip(to_rows(images), to_rows(step.change(images, draws)), strict=True)):
        own = {key: values[row] for key, values in outline.items()}
        expected, is_near = reference.lower_face(image, **own, colour=colour[row])
        assert is_near.mean() < 0.01
        assert np.abs(result - expected)[~is_near].max() <= 0.5 + 1e-3


def test_lower_face_hides_the_mouth_and_spares_the_eyes() -> None:
    white = torch.full((50, 3, 112, 112), 3, dtype=torch.uint8)
    is_covered = (LowerFace(strength=1.0).change(white, draws_for(50, "lower_face")) != white).any(dim=1)
    assert is_covered[:, 92, 42].all()
    assert is_covered[:, 92, 70].all()
    assert is_covered[:, 75, 56].all(), "tip of the nose"
    assert not is_covered[:, :54].any(), "eyes"
    assert not is_covered[:, 60:, :8].any(), "beside the face"
    assert not is_covered[:, 111, :20].any(), "beside the chin"


def test_lower_face_colours_are_those_of_masks_and_vary() -> None:
    colours = LowerFace().colour(draws_for(300, "lower_face"))
    assert colours.min() >= 0
    assert colours.max() <= 255
    assert len(np.unique(colours, axis=0)) > 250
    assert (colours.max(axis=1) < 60).any(), "black ones"
    assert (colours.min(axis=1) > 215).any(), "white ones"
