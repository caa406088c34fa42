"""The list, its draws and mirroring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gkd.core import seed as randomness
from gkd.core.errors import ConfigError
from gkd.data.augment import AUGMENTATIONS, Augment, CropResize, Cutout, Draws, Flip, Grey, Photometric
from tests.data.augment.reference import textured

IDS = torch.tensor([3, 17, 4, 1_000_003, 0, 12])


@pytest.mark.parametrize("seed", [0, 1024, 2**32 - 1])
def test_mirroring_is_that_of_stream_0_wherever_it_stands(seed: int) -> None:
    images = textured(6)
    expected = torch.from_numpy(randomness.uniform(IDS.numpy(), seed, 9) < 0.5)
    for steps in ([Flip()], [Grey(probability=1.0), Flip()], [Flip(), Cutout(probability=1.0)]):
        assert torch.equal(Augment(steps, seed)(images, IDS, 9)[1], expected)
    mirrored = Augment([Flip()], seed)(images, IDS, 9)[0]
    for image, result, is_flipped in zip(images, mirrored, expected, strict=True):
        assert torch.equal(result, image.flip(-1) if is_flipped else image)


def test_without_a_flip_nothing_is_said_to_be_mirrored() -> None:
    is_flipped = Augment([Grey(probability=1.0)], 0)(textured(6), IDS, 0)[1]
    assert is_flipped.dtype == torch.bool
    assert is_flipped.tolist() == [False] * 6


def test_an_empty_list_and_unchosen_images_pass_through() -> None:
    images = textured(6)
    assert Augment([], 0)(images, IDS, 0)[0] is images
    result = Augment([Grey(probability=0.5)], 0)(images, IDS, 0)[0]
    chosen = randomness_of(Grey(probability=0.5))
    assert 0 < chosen.sum() < 6
    assert torch.equal(result[~chosen], images[~chosen])


def randomness_of(step: Grey) -> torch.Tensor:
    return torch.from_numpy(step.choose(Draws(IDS.numpy(), 0, 0, 0, step.name)))


def test_an_empty_batch() -> None:
    steps = [cls() for cls in AUGMENTATIONS.values()]
    images, is_flipped = Augment(steps, 0)(textured(6)[:0], IDS[:0], 0)
    assert images.shape == (0, 3, 112, 112)
    assert is_flipped.shape == (0,)


def test_two_flips_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^augment: flip is listed 2 times, .* keep one of them$"):
        Augment([Flip(), Grey(), Flip()], 0)


def test_steps_follow_each_other() -> None:
    images = textured(6)
    steps = [Flip(), Photometric(probability=1.0), CropResize(probability=0.5), Cutout(probability=1.0)]
    step_by_step = images
    for place, step in enumerate(steps):
        draws = Draws(IDS.numpy(), 3, 4, place, step.name)
        rows = np.flatnonzero(step.choose(draws))
        step_by_step = step_by_step.clone()
        step_by_step[rows] = step.change(step_by_step[rows], draws.of(rows))
    assert torch.equal(Augment(steps, 3)(images, IDS, 4)[0], step_by_step)


def test_a_step_listed_twice_draws_twice() -> None:
    images = textured(6)
    once = Augment([Cutout(probability=1.0)], 0)(images, IDS, 0)[0]
    twice = Augment([Cutout(probability=1.0), Cutout(probability=1.0)], 0)(images, IDS, 0)[0]
    num_filled = [(result == 128).all(dim=1).sum() for result in (once, twice)]
    assert num_filled[1] > 1.2 * num_filled[0]


def test_draws_are_those_of_their_rows() -> None:
    draws = Draws(IDS.numpy(), 1, 2, 3, "cutout")
    rows = np.array([4, 1])
    assert np.array_equal(draws.of(rows).uniform("height"), draws.uniform("height")[rows])


def test_draws_are_even_and_independent() -> None:
    """Chi-square over 16 x 16 cells of two purposes, two places and two epochs: 255 degrees of freedom, sd 22.6."""
    ids = np.arange(25_600)
    first = Draws(ids, 11, 0, 0, "cutout")
    others = [
        (first, "width"),
        (Draws(ids, 11, 0, 1, "cutout"), "height"),
        (Draws(ids, 11, 1, 0, "cutout"), "height"),
        (Draws(ids, 11, 0, 0, "crop_resize"), "height"),
    ]
    for draws, what in others:
        table = np.histogram2d(first.uniform("height"), draws.uniform(what), bins=16, range=[[0, 1], [0, 1]])[0]
        statistic = ((table - 100) ** 2 / 100).sum()
        assert 255 - 4 * 22.6 < statistic < 255 + 5 * 22.6


def test_whole_numbers_are_even_and_within_their_range() -> None:
    counts = np.bincount(Draws(np.arange(8000), 0, 0, 0, "jpeg").whole("quality", 8), minlength=8)
    assert len(counts) == 8
    assert ((counts - 1000) ** 2 / 1000).sum() < 30
    limits = np.arange(1, 101)
    values = Draws(np.arange(100), 0, 0, 0, "cutout").whole("height offset", limits)
    assert ((values >= 0) & (values < limits)).all()
