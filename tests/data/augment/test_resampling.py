"""Low resolution and crops beside loops over pixels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from gkd.core.errors import ConfigError
from gkd.data.augment import CropResize, LowResolution
from gkd.data.augment.resample import KERNELS, after, axis_weights, crop_weights, resample, whole_weights
from tests.data.augment import reference
from tests.data.augment.reference import draws_for, textured, to_rows

NAMES = [kernel.__name__ for kernel in KERNELS]
# Three roundings: of the weights (2^-12 each), between the passes (1/16) and of the result (1/2).
TOLERANCE = 1.0


def weights_of(name: str, num_out: int, num_in: int, length: int) -> torch.Tensor:
    kernel = torch.tensor([NAMES.index(name)])
    return axis_weights(kernel, torch.tensor([float(num_out)]), torch.tensor([float(num_in)]), length)


@pytest.mark.parametrize(("num_out", "num_in"), [(9, 31), (31, 9), (30, 31), (31, 31), (1, 31), (31, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_weights(name: str, num_out: int, num_in: int) -> None:
    weights = weights_of(name, num_out, num_in, 31)[0].numpy()
    assert np.array_equal(weights, np.round(weights))
    assert (weights[:num_out].sum(axis=1) == 2048).all()
    assert not weights[num_out:].any()
    assert not weights[:, num_in:].any()
    expected = reference.axis(name, num_out, num_in)
    assert np.abs(weights[:num_out, :num_in] / 2048 - expected).max() < 3e-3


@pytest.mark.parametrize("size", [12, 40, 58])
@pytest.mark.parametrize("name", NAMES)
def test_resampling_is_that_of_opencv(name: str, size: int) -> None:
    flags = {
        "nearest": cv2.INTER_NEAREST_EXACT,
        "bilinear": cv2.INTER_LINEAR,
        "area": cv2.INTER_AREA,
        "bicubic": cv2.INTER_CUBIC,
    }
    if name == "area" and size > 30:
        pytest.skip("OpenCV's area is bilinear when it makes larger")
    images = textured(1, 30, 30)
    expected = cv2.resize(to_rows(images)[0], (size, size), interpolation=flags[name])
    length = max(size, 30)
    padded = torch.zeros(1, 3, length, length, dtype=torch.uint8)
    padded[:, :, :30, :30] = images
    weights = weights_of(name, size, 30, length)
    result = to_rows(resample(padded, weights, weights))[0][:size, :size]
    # For bicubic OpenCV repeats the outermost pixel at the border, and may round by one more.
    inner = slice(2, -2)
    assert np.abs(result.astype(int) - expected)[inner, inner].max() <= 1 + (name == "bicubic")


@pytest.mark.parametrize("size", [(28, 28), (33, 26)])
def test_low_resolution(size: tuple[int, int]) -> None:
    images, draws, step = textured(24, *size), draws_for(24, "low_resolution"), LowResolution()
    heights, widths = step.small_side(draws, size[0]), step.small_side(draws, size[1])
    down, up = step.kernels(draws)
    assert len(set(zip(down, up, strict=True))) > 10
    for row, (image, result) in enumerate(zip(to_rows(images), to_rows(step.change(images, draws)), strict=True)):
        names = NAMES[down[row]], NAMES[up[row]]
        small = reference.apply(
            image, reference.axis(names[0], heights[row], size[0]), reference.axis(names[0], widths[row], size[1])
        )
        expected = reference.apply(
            small, reference.axis(names[1], size[0], heights[row]), reference.axis(names[1], size[1], widths[row])
        )
        assert np.abs(result - np.clip(expected, 0, 255)).max() <= TOLERANCE


def test_low_resolution_sizes_are_even_and_reach_a_fifth() -> None:
    draws = draws_for(4000, "low_resolution")
    small = LowResolution(strength=1.0).small_side(draws, 100)
    assert small.min() == 20
    assert small.max() == 99
    assert np.histogram(small, bins=8, range=(20, 100))[0].min() > 400
    assert LowResolution(strength=0.5).small_side(draws, 100).min() == 60
    assert (LowResolution(strength=1.0).small_side(draws, 1) == 1).all()


@pytest.mark.parametrize("size", [(28, 28), (33, 26)])
@pytest.mark.parametrize("stretch", [1.0, 1.8])
def test_crop_resize(size: tuple[int, int], stretch: float) -> None:
    images, draws = textured(8, *size), draws_for(8, "crop_resize")
    step = CropResize(strength=1.0, stretch=stretch)
    spans = step.spans(draws)
    for row, (image, result) in enumerate(zip(to_rows(images), to_rows(step.change(images, draws)), strict=True)):
        rows, columns = (
            reference.axis("bilinear", length, length, start[row] * length, extent[row] * length)
            for (start, extent), length in zip(spans.values(), size, strict=True)
        )
        assert np.abs(result - reference.apply(image, rows, columns)).max() <= TOLERANCE


def test_crops_lie_inside_and_keep_proportions() -> None:
    draws = draws_for(4000, "crop_resize")
    (top, height), (left, width) = CropResize(strength=1.0).spans(draws).values()
    assert np.array_equal(height, width)
    assert 0.5 < height.min() < 0.502
    assert height.max() <= 1
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 1
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.8, "height and width are placed apart"


def test_stretched_crops_go_both_ways() -> None:
    (_, height), (_, width) = CropResize(strength=1.0, stretch=1.5).spans(draws_for(4000, "crop_resize")).values()
    ratio = height / width
    assert 1.49 < ratio.max() <= 1.5 + 1e-9
    assert 1.49 < (1 / ratio).max() <= 1.5 + 1e-9
    assert 0.45 < (ratio < 1).mean() < 0.55


@pytest.mark.parametrize("stretch", [0.9, 3, float("nan")])
def test_crop_resize_refuses_a_stretch(stretch: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"^augmentation crop_resize: stretch must lie between 1 and 2, got {stretch}$"
    ):
        CropResize(stretch=stretch)


def test_the_whole_crop_is_the_image() -> None:
    images = textured(2, 40, 30)
    whole = [crop_weights(torch.zeros(2), torch.full((2,), float(length)), length) for length in (40, 30)]
    assert torch.equal(resample(images, *whole), images)


def test_sums_stay_exact() -> None:
    """The largest sums that weights and pixels can make lie below 2^24, overshoots of two bicubics included."""
    length = 112
    both = [after(weights_of("bicubic", length, small, length), weights_of("bicubic", small, length, length))
            for small in range(22, length)]  # fmt: skip
    largest = max(weights.abs().sum(dim=2).max().item() for weights in both) / 2048
    assert 1 < largest < 2
    assert 255 * 8 * largest * 2048 * largest < 2**24


def test_what_rounding_leaves_goes_to_the_largest_weight() -> None:
    weights = whole_weights(torch.tensor([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [3.0, -1.0, 0.0]]]))
    assert weights.tolist() == [[[682, 683, 683], [0, 0, 0], [3072, -1024, 0]]]
