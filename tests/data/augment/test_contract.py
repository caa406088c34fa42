"""What every entry of the table promises."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.data.augment import AUGMENTATIONS, Augment, Augmentation, Draws
from tests.data.augment.reference import textured

NAMES = list(AUGMENTATIONS)
WITH_STRENGTH = [name for name in NAMES if name != "flip"]
SIZES = [(112, 112), (64, 48), (37, 53), (1, 1), (9, 200)]
IDS = torch.arange(1000, 1012) * 7919


def make(name: str, probability: float, **settings: float) -> Augmentation:
    return AUGMENTATIONS[name](probability=probability, **settings)


def change(images: Tensor, *steps: Augmentation, ids: Tensor = IDS, seed: int = 5, epoch: int = 2) -> Tensor:
    return Augment(steps, seed)(images, ids[: len(images)], epoch)[0]


def difference(changed: Tensor, images: Tensor) -> Tensor:
    """Mean absolute change of each image, (N,)."""
    return (changed.float() - images.float()).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_plain_and_the_name_that_of_the_table(name: str) -> None:
    cls = AUGMENTATIONS[name]
    assert cls.name == name
    parameters = inspect.signature(cls).parameters
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert 0 < parameters["probability"].default <= 0.5
    assert ("strength" in parameters) == (name in WITH_STRENGTH)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_shape_and_kind_stay_and_the_input_is_unchanged(name: str, size: tuple[int, int]) -> None:
    images = textured(5, *size)
    before = images.clone()
    changed = change(images, make(name, 1.0))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert changed.data_ptr() != images.data_ptr()
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_format_stays(name: str) -> None:
    images = textured(4).contiguous(memory_format=torch.channels_last)
    for probability in (0.5, 1.0):
        changed = change(images, make(name, probability))
        assert changed.stride() == images.stride()
        assert torch.equal(changed, change(images.contiguous(), make(name, probability)))


@pytest.mark.parametrize("name", NAMES)
def test_probability_0_passes_images_through_and_1_changes_all(name: str) -> None:
    images = textured(12)
    assert change(images, make(name, 0.0)) is images
    assert (difference(change(images, make(name, 1.0)), images) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_result_depends_on_seed_epoch_and_id(name: str) -> None:
    images = textured(1).expand(12, -1, -1, -1).contiguous()
    step = make(name, 0.5)
    reference = change(images, step)
    assert torch.equal(change(images, step), reference)
    for other in ({"seed": 6}, {"epoch": 3}, {"ids": IDS + 1}):
        assert not torch.equal(change(images, step, **other), reference)
    is_same = (reference == reference[:1]).flatten(1).all(dim=1)
    assert not is_same.all(), "all images were treated alike"


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_does_not_matter(name: str) -> None:
    images, step = textured(12), make(name, 0.7)
    together = change(images, step)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(change(images[order], step, ids=IDS[order]), together[order])
    for row in range(12):
        assert torch.equal(change(images[row : row + 1], step, ids=IDS[row : row + 1]), together[row : row + 1])
    assert torch.equal(change(images[5:9], step, ids=IDS[5:9]), together[5:9])


def test_the_batch_does_not_matter_to_a_list_of_all() -> None:
    images, steps = textured(12, 50, 70), [make(name, 0.6) for name in NAMES]
    together = change(images, *steps)
    alone = [change(images[row : row + 1], *steps, ids=IDS[row : row + 1]) for row in range(12)]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("name", WITH_STRENGTH)
def test_more_strength_changes_more(name: str) -> None:
    images = textured(32, 56, 56)
    ids = torch.arange(32)
    means = [
        difference(change(images, make(name, 1.0, strength=strength), ids=ids), images).mean().item()
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    assert all(more > less for less, more in itertools.pairwise(means)), means
    if name != "jpeg":
        assert means[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_even_images_survive(name: str) -> None:
    for grey_level in (0, 128, 255):
        images = torch.full((12, 3, 30, 30), grey_level, dtype=torch.uint8)
        changed = change(images, make(name, 1.0))
        if name == "jpeg":  # the step of the mean, at most 80, leaves at most 5 grey levels
            assert difference(changed, images).max() <= 5
        if name in ("flip", "low_resolution", "crop_resize", "grey"):
            assert torch.equal(changed, images)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("name", NAMES)
def test_values_outside_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^augmentation {name}: probability must lie between 0 and 1, got {value}$"):
        make(name, value)
    if name in WITH_STRENGTH:
        with pytest.raises(
            ConfigError, match=rf"^augmentation {name}: strength must lie between 0 and 1, got {value}$"
        ):
            make(name, 0.5, strength=value)


@pytest.mark.parametrize("name", NAMES)
def test_the_share_of_changed_images_is_the_probability(name: str) -> None:
    num_images, probability = 4000, 0.3
    chosen = make(name, probability).choose(Draws(np.arange(num_images), 5, 0, 0, name))
    expected = num_images * probability
    assert abs(chosen.sum() - expected) < 4 * np.sqrt(expected * (1 - probability))


@pytest.mark.parametrize("name", NAMES)
def test_always(name: str) -> None:
    step = make(name, 0.25)
    assert step.always().probability == 1
    assert step.probability == 0.25


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_computes_the_same(name: str) -> None:
    images = textured(12)
    step = make(name, 0.8)
    on_cpu, is_flipped = Augment([step], 5)(images, IDS, 2)
    on_gpu, is_flipped_there = Augment([step], 5)(images.cuda(), IDS, 2)
    assert torch.equal(is_flipped_there, is_flipped)
    # Rounding may tip a coefficient of a JPEG block; everything else is one grey level at most.
    apart = (on_gpu.cpu().int() - on_cpu.int()).abs()
    assert (apart > 1).float().mean() < (1e-3 if name == "jpeg" else 1e-9)


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for() -> None:
    images = textured(12).cuda()
    augment = Augment([make(name, 0.8) for name in NAMES], 5)
    augment(images, IDS, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(images, IDS, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
