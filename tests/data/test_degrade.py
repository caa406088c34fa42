"""Degradations against loops over pixels in float64 and the codec itself; damage, determinism and refusals."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.data.augment import Draws, LowerFace
from gkd.data.degrade import DEGRADATIONS, find_degradations
from tests.data.augment.reference import textured, to_rows

Floats = npt.NDArray[np.float64]
NUMBERS = np.array([7, 3, 1000])
RANDOM = ("noise", "mask", "square", "rotation")


def degrade(name: str, images: Tensor, level: float | None, seed: int = 5) -> Tensor:
    return DEGRADATIONS[name](images, level, NUMBERS[: len(images)], seed)


def drawn_face(size: int = 112) -> Tensor:
    """Skin, hair, eyes, brows, nose and mouth, in flat colours with soft edges."""
    face = np.full((size, size, 3), (96, 120, 132), dtype=np.uint8)
    cv2.ellipse(face, (56, 60), (38, 50), 0, 0, 360, (214, 170, 146), -1, cv2.LINE_AA)
    cv2.ellipse(face, (56, 22), (40, 20), 0, 180, 360, (52, 38, 30), -1, cv2.LINE_AA)
    for x in (38, 74):
        cv2.ellipse(face, (x, 52), (7, 4), 0, 0, 360, (245, 245, 245), -1, cv2.LINE_AA)
        cv2.circle(face, (x, 52), 3, (40, 60, 80), -1, cv2.LINE_AA)
        cv2.line(face, (x - 8, 43), (x + 8, 42), (60, 44, 36), 2, cv2.LINE_AA)
    cv2.line(face, (56, 54), (52, 72), (170, 120, 100), 2, cv2.LINE_AA)
    cv2.ellipse(face, (56, 92), (14, 5), 0, 0, 180, (160, 60, 70), -1, cv2.LINE_AA)
    return torch.from_numpy(face).permute(2, 0, 1)[None].contiguous()


def mirrored_place(place: int, length: int) -> int:
    """The pixel that a place beyond the border shows, where the outermost one is not repeated."""
    period = 2 * (length - 1)
    place = place % period
    return place if place < length else period - place


def blur_in_loops(image: npt.NDArray[np.uint8], sigma: float) -> Floats:
    reach = math.ceil(4 * sigma)
    weights = np.array([math.exp(-(step**2) / (2 * sigma**2)) for step in range(-reach, reach + 1)])
    weights /= weights.sum()
    result = image.astype(np.float64)
    for axis in (0, 1):
        length, before = image.shape[axis], result
        result = np.zeros_like(before)
        for place in range(length):
            for weight, step in zip(weights, range(-reach, reach + 1), strict=True):
                seen = np.take(before, mirrored_place(place + step, length), axis=axis)
                result[(slice(None),) * axis + (place,)] += weight * seen
    return result


def area_in_loops(values: Floats, small: int) -> Floats:
    """Along the first axis: the mean over each result pixel's stretch."""
    length = len(values)
    result = np.zeros((small, *values.shape[1:]))
    for place in range(small):
        start, end = place * length / small, (place + 1) * length / small
        for source in range(length):
            result[place] += max(0.0, min(end, source + 1) - max(start, source)) * values[source] * small / length
    return result


def bicubic_in_loops(values: Floats, length: int) -> Floats:
    """Along the first axis: Keys' convolution with a = -0.75; the border's weights are left out and made up for."""
    small, a = len(values), -0.75
    result = np.zeros((length, *values.shape[1:]))
    for place in range(length):
        centre, total = (place + 0.5) * small / length - 0.5, 0.0
        for source in range(small):
            x = abs(centre - source)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            weight = near if x <= 1 else far if x < 2 else 0.0
            result[place] += weight * values[source]
            total += weight
        result[place] /= total
    return result


def rotate_in_loops(image: npt.NDArray[np.uint8], angle: float) -> Floats:
    """Bilinear, about the middle, anticlockwise as seen; places beyond the border show its pixel."""
    height, width = image.shape[:2]
    result = np.zeros(image.shape)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    for row in range(height):
        for column in range(width):
            dx, dy = column - middle_x, row - middle_y
            x, y = middle_x + cos * dx - sin * dy, middle_y + sin * dx + cos * dy
            for y0 in (math.floor(y), math.floor(y) + 1):
                for x0 in (math.floor(x), math.floor(x) + 1):
                    seen = image[min(max(y0, 0), height - 1), min(max(x0, 0), width - 1)]
                    result[row, column] += (1 - abs(y - y0)) * (1 - abs(x - x0)) * seen
    return result


def assert_near(result: Tensor, expected: list[Floats], tolerance: float) -> None:
    for got, wanted in zip(to_rows(result), expected, strict=True):
        assert np.abs(got - np.clip(wanted, 0, 255)).max() <= tolerance


@pytest.mark.parametrize("sigma", [0.5, 1.3, 4.0, 9.0])
def test_blur_is_a_gaussian(sigma: float) -> None:
    images = textured(2, 24, 20)
    assert_near(degrade("blur", images, sigma), [blur_in_loops(row, sigma) for row in to_rows(images)], 0.501)


@pytest.mark.parametrize("quality", [5, 30, 90])
def test_jpeg_is_the_codec_with_chroma_at_half_resolution(quality: int) -> None:
    images = textured(3, 34, 28)
    for got, row in zip(to_rows(degrade("jpeg", images, quality)), to_rows(images), strict=True):
        encoded = cv2.imencode(".jpg", cv2.cvtColor(row, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        frame = encoded.tobytes().index(b"\xff\xc0")
        assert encoded[frame + 11] == 0x22, "OpenCV's own choice is 4:2:0 as well"
        np.testing.assert_array_equal(got, cv2.cvtColor(cv2.imdecode(encoded, 1), cv2.COLOR_BGR2RGB))


@pytest.mark.parametrize(("height", "width", "side"), [(24, 24, 7), (24, 30, 8), (28, 20, 20), (112, 112, 28)])
def test_low_resolution_is_area_down_and_bicubic_up(height: int, width: int, side: int) -> None:
    images = textured(2, height, width)
    smalls = [max(1, round(side * length / min(height, width))) for length in (height, width)]
    expected = []
    for row in to_rows(images):
        values = row.astype(np.float64)
        for length, small in zip((height, width), smalls, strict=True):
            values = bicubic_in_loops(area_in_loops(values, small), length).swapaxes(0, 1)
        expected.append(values)
    assert_near(degrade("low_resolution", images, side), expected, 1.2)


def test_small_images_are_those_of_opencv() -> None:
    """Where the side divides, away from the border, which OpenCV repeats instead."""
    images = textured(1)
    row = to_rows(images)[0]
    small = cv2.resize(row.astype(np.float32), (28, 28), interpolation=cv2.INTER_AREA)
    expected = cv2.resize(small, (112, 112), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    got = to_rows(degrade("low_resolution", images, 28))[0]
    assert np.abs(got - expected)[8:-8, 8:-8].max() <= 1.2


@pytest.mark.parametrize(("name", "factor"), [("darkness", 0.35), ("brightness", 1.7)])
def test_grey_levels_are_multiplied(name: str, factor: float) -> None:
    images = textured(2, 16, 12)
    assert_near(degrade(name, images, factor), [row * factor for row in to_rows(images)], 0.501)


def test_contrast_shrinks_around_the_mean_luma() -> None:
    images = textured(2, 16, 12)
    expected = []
    for row in to_rows(images):
        mean = np.mean([0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in row.reshape(-1, 3)])
        expected.append(0.3 * row + 0.7 * mean)
    assert_near(degrade("contrast", images, 0.3), expected, 0.501)


def test_noise_has_the_deviation_and_no_mean() -> None:
    images = torch.full((3, 3, 112, 112), 128, dtype=torch.uint8)
    noise = degrade("noise", images, 12).double() - 128
    assert noise.mean().abs() < 0.15
    assert noise.std() == pytest.approx(math.sqrt(12**2 + 1 / 12), abs=0.1)
    flat = noise.flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.02
    channels = noise[0].flatten(1)
    assert torch.corrcoef(channels).fill_diagonal_(0).abs().max() < 0.03


def test_mask_is_the_shape_of_the_augmentation() -> None:
    images = textured(3)
    expected = LowerFace(strength=0.8).change(images, Draws(NUMBERS, 5, 0, 0, "lower_face"))
    masked = degrade("mask", images, 0.8)
    assert torch.equal(masked, expected)
    assert torch.equal(masked[:, :, :60], images[:, :, :60]), "the eyes stay"
    assert (masked[:, :, 85:105, 40:72] != images[:, :, 85:105, 40:72]).double().mean() > 0.9, "the mouth does not"


@pytest.mark.parametrize(("height", "width"), [(112, 112), (40, 56)])
@pytest.mark.parametrize("share", [0.05, 0.4])
def test_square_hides_its_share(height: int, width: int, share: float) -> None:
    images = textured(3, height, width).clamp_max(127)
    side = round(math.sqrt(share * height * width))
    corners = set()
    for image, result in zip(images, degrade("square", images, share), strict=True):
        changed = (result != image).all(dim=0)
        rows, columns = changed.any(dim=1).nonzero()[:, 0], changed.any(dim=0).nonzero()[:, 0]
        top, left = int(rows[0]), int(columns[0])
        corners.add((top, left))
        expected = image.clone()
        for row in range(top, top + side):
            for column in range(left, left + side):
                expected[:, row, column] = 128
        assert torch.equal(result, expected)
    assert len(corners) == 3


def test_rotation_turns_about_the_middle_to_either_side() -> None:
    images = drawn_face().repeat(3, 1, 1, 1)[:, :, 10:100, 4:108].contiguous()
    turned = DEGRADATIONS["rotation"](images, 9, np.array([0, 1, 2]), 1)
    sides = set()
    for got, row in zip(to_rows(turned), to_rows(images), strict=True):
        wrong = {sign: np.abs(got - rotate_in_loops(row, sign * 9)) for sign in (-1, 1)}
        sign = min(wrong, key=lambda each: float(wrong[each].mean()))
        sides.add(sign)
        # OpenCV rounds places to 1/32 of a pixel.
        assert wrong[sign].mean() < 0.3
        assert wrong[sign].max() < 12
    assert sides == {-1, 1}


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_result_is_new_pixels_of_the_same_kind(name: str) -> None:
    images = textured(3)
    before = images.clone()
    for level in DEGRADATIONS[name].levels:
        result = degrade(name, images, level)
        assert (result.shape, result.dtype, result.is_contiguous()) == (images.shape, torch.uint8, True)
        assert not torch.equal(result, images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_damage_grows_with_the_level(name: str) -> None:
    face = drawn_face()
    levels = DEGRADATIONS[name].levels
    assert len(levels) == 4
    damage = [float((degrade(name, face, level).double() - face.double()).square().mean()) for level in levels]
    assert damage[0] > 0
    assert damage == sorted(damage)
    assert len(set(damage)) == 4


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_no_level_changes_nothing(name: str) -> None:
    images = textured(2)
    assert degrade(name, images, None) is images
    if DEGRADATIONS[name].none is not None:
        assert degrade(name, images, DEGRADATIONS[name].none) is images


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_an_image_is_degraded_alike_in_any_batch(name: str) -> None:
    images, numbers, degradation = textured(7), np.arange(50, 57), DEGRADATIONS[name]
    whole = degradation(images, degradation.levels[1], numbers, 3)
    order = np.array([6, 0, 3])
    assert torch.equal(degradation(images[order], degradation.levels[1], numbers[order], 3), whole[order])
    assert torch.equal(degradation(images[2:3], degradation.levels[1], numbers[2:3], 3), whole[2:3])
    other_layout = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(degradation(other_layout, degradation.levels[1], numbers, 3), whole)


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_only_what_is_random_depends_on_seed_and_number(name: str) -> None:
    images, degradation = textured(1).expand(16, -1, -1, -1), DEGRADATIONS[name]
    level, numbers = degradation.levels[2], np.arange(16)
    first = degradation(images, level, numbers, 0)
    assert torch.equal(degradation(images, level, numbers, 0), first)
    other_seed = degradation(images, level, numbers, 1)
    other_numbers = degradation(images, level, numbers + 16, 0)
    is_random = name in RANDOM
    assert torch.equal(other_seed, first) == torch.equal(other_numbers, first) == (not is_random)
    assert (len({bytes(image.numpy()) for image in first}) > 1) == is_random


def test_what_is_drawn_is_the_same_at_every_level() -> None:
    images = torch.full((3, 3, 112, 112), 128, dtype=torch.uint8)
    weak, strong = (degrade("noise", images, sigma).double() - 128 for sigma in (10, 20))
    assert (2 * weak - strong).abs().max() <= 1.5
    small, large = (degrade("square", images * 0, share) > 0 for share in (0.1, 0.3))
    assert bool((small <= large).all()), "a larger square holds the smaller one"


@pytest.mark.parametrize(
    ("name", "level", "message"),
    [
        ("blur", -1, r"degradation blur: a level is a sigma in pixels from 0 to 16, got -1"),
        ("blur", math.nan, "got nan"),
        ("blur", True, "got True"),
        ("blur", "2", "got '2'"),
        ("jpeg", 0, "quality from 1 to 100, got 0"),
        ("jpeg", 30.5, "a quality, a whole number, got 30.5"),
        ("low_resolution", 0, "from 1 to 4096, got 0"),
        ("low_resolution", 41, "a side in pixels of at most the image's, which is 40, got 41"),
        ("darkness", 1.2, "from 0.01 to 1, got 1.2"),
        ("brightness", 0.5, "from 1 to 16, got 0.5"),
        ("contrast", 0, "from 0.01 to 1, got 0"),
        ("noise", 1e9, "from 0 to 128"),
        ("mask", 1.01, "from 0 to 1, got 1.01"),
        ("square", 0.9, r"a square of 0\.9 does not fit into 40x56 pixels"),
        ("rotation", math.inf, "from 0 to 90, got inf"),
    ],
)
def test_levels_that_cannot_be_are_refused(name: str, level: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        degrade(name, textured(1, 40, 56), level)


def test_names_are_checked() -> None:
    assert find_degradations(None) == tuple(DEGRADATIONS.values())
    assert [each.name for each in find_degradations(("jpeg", "blur"))] == ["jpeg", "blur"]
    for names, given in ((("blur", "fog"), "fog"), ((), "none"), (("blur", "blur"), "blur, blur")):
        with pytest.raises(ConfigError, match=f"degradations must be different ones of blur, jpeg, .*, got {given}$"):
            find_degradations(names)
