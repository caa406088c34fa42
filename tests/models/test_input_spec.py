"""InputSpec: values against the formula by loops, channel order, memory format, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gkd.core.errors import ConfigError, DataError
from gkd.models import InputSpec


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("mean", "std"),
    [((127.5,) * 3, (127.5,) * 3), ((0.0,) * 3, (255.0,) * 3), ((120.0, 110.5, 100.25), (60.0, 61.5, 62.25))],
)
def test_values(color: Any, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
    images = pixels()
    converted = InputSpec(color=color, mean=mean, std=std).convert(images)
    assert converted.dtype == torch.float32
    for n, c, y, x in torch.cartesian_prod(*(torch.arange(size) for size in images.shape)).tolist():
        source = c if color == "rgb" else 2 - c
        expected = (images[n, source, y, x].item() - mean[c]) / std[c]
        assert converted[n, c, y, x].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_default_reaches_exactly_minus_one_and_one() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(3).view(1, 3, 1, 2)
    assert InputSpec().convert(images).unique().tolist() == [-1.0, 1.0]


def test_input_is_left_alone() -> None:
    images = pixels()
    before = images.clone()
    InputSpec().convert(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("mean", [(127.5,) * 3, (1.0, 2.0, 3.0)])
def test_channels_last_is_kept(color: Any, mean: tuple[float, float, float]) -> None:
    spec, images = InputSpec(color=color, mean=mean), pixels()
    converted = spec.convert(images.contiguous(memory_format=torch.channels_last))
    assert converted.is_contiguous(memory_format=torch.channels_last)
    assert not converted.is_contiguous()
    assert torch.equal(converted, spec.convert(images))


def test_numbers_become_a_tuple_of_floats() -> None:
    spec = InputSpec(mean=[1, 2, 3])  # type: ignore[arg-type]
    assert spec.mean == (1.0, 2.0, 3.0)
    assert hash(spec) == hash(InputSpec(mean=(1.0, 2.0, 3.0)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"color": "hsv"}, "input color must be rgb or bgr, got 'hsv'"),
        ({"mean": (1.0, 2.0)}, r"input mean must be three numbers in units of 0..255 pixels, got \(1.0, 2.0\)"),
        ({"mean": "123"}, "input mean must be three numbers"),
        ({"mean": 0.5}, "input mean must be three numbers"),
        ({"mean": (0.0, float("nan"), 0.0)}, "input mean must be three numbers"),
        ({"std": (1.0, True, 1.0)}, "input std must be three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "input std must be above 0 in all channels"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        InputSpec(**fields)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4).byte(), torch.zeros(2, 4, 4, 3).byte()]
)
def test_images_of_another_kind_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"images must be uint8 of shape \(N, 3, H, W\), got torch"):
        InputSpec().convert(images)
