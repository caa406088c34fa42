"""Every margin of the table against its float64 reference, values and gradients, and the traps at the ends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gkd.core.errors import ConfigError, DataError
from gkd.heads import MARGINS, ArcFace, CosFace, Margin
from tests.reference import margins as reference

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("arcface", {}),
    ("arcface", {"margin": 0.3, "scale": 30.0}),
    ("arcface", {"margin": 0.0}),
    ("arcface", {"gradient": "straight_through"}),
    ("cosface", {}),
    ("cosface", {"margin": 0.1, "scale": 16.0}),
]
EDGES = (-1.0, -1 + 1e-7, -0.9999, -math.cos(0.5) - 1e-3, -math.cos(0.5) + 1e-3, 0.0, 0.3, 0.9999, 1 - 1e-7, 1.0)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Cosines whose targets pass through every region, the ends included."""
    torch.manual_seed(0)
    cosine = torch.rand(len(EDGES) + 8, 7, dtype=torch.float64) * 2 - 1
    labels = torch.arange(len(cosine)) % 7
    cosine[range(len(EDGES)), labels[: len(EDGES)]] = torch.tensor(EDGES, dtype=torch.float64)
    return cosine.to(dtype), labels


def run(margin: Margin, cosine: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The logits, and the gradient of their weighted sum."""
    leaf = cosine.clone().requires_grad_()
    logits = margin(leaf, labels)
    weights = torch.ones_like(logits) if weights is None else weights
    (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf)
    return logits.detach(), gradient


def test_the_settings_cover_the_table() -> None:
    assert {name for name, _ in SETTINGS} == set(MARGINS)
    assert {"arcface": ArcFace, "cosface": CosFace} == MARGINS


@pytest.mark.parametrize(("name", "options"), SETTINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_value_equals_the_reference(name: str, options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    margin, (cosine, labels) = MARGINS[name](**options), batch(dtype)
    expected = reference.logits(name, cosine.tolist(), labels.tolist(), margin.margin, margin.scale)
    logits = margin(cosine, labels)
    assert logits.dtype == dtype
    torch.testing.assert_close(
        logits.double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance * margin.scale
    )


@pytest.mark.parametrize(("name", "options"), SETTINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_gradient_equals_the_reference(
    name: str, options: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    margin, (cosine, labels) = MARGINS[name](**options), batch(dtype)
    weights = torch.randn(cosine.shape, dtype=dtype)
    _, gradient = run(margin, cosine, labels, weights)
    expected = weights.double() * margin.scale
    for i, label in enumerate(labels.tolist()):
        straight_through = options.get("gradient") == "straight_through"
        expected[i, label] *= reference.slope(name, float(cosine[i, label]), margin.margin, straight_through)
    torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), [pair for pair in SETTINGS if "gradient" not in pair[1]])
def test_gradient_is_the_derivative_of_the_value(name: str, options: dict[str, Any]) -> None:
    margin = MARGINS[name](**options)
    cosine = torch.linspace(-0.95, 0.95, 24, dtype=torch.float64).reshape(8, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: margin(c, torch.arange(8) % 3), (cosine,))


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_finite_at_the_ends(name: str, dtype: torch.dtype, value: float) -> None:
    cosine = torch.full((2, 3), value, dtype=dtype)
    logits, gradient = run(MARGINS[name](), cosine, torch.tensor([0, 2]), torch.full((2, 3), 1e-3))
    assert logits.isfinite().all()
    assert gradient.isfinite().all()
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(name: str, dtype: torch.dtype) -> None:
    cosine, labels = batch(dtype)
    margin = MARGINS[name](scale=30.0)  # no power of two, so that scaling in half precision would show
    logits, gradient = run(margin, cosine, labels)
    expected, expected_gradient = run(margin, cosine.float(), labels)
    assert torch.equal(logits, expected)
    assert torch.equal(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("name", MARGINS)
def test_a_cosine_that_rounding_put_outside_is_finite(name: str) -> None:
    cosine = torch.tensor([[1.0000001, 0.0], [-1.0000001, 0.0]])
    logits, gradient = run(MARGINS[name](), cosine, torch.tensor([0, 0]))
    assert logits.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", MARGINS)
def test_only_targets_differ_from_plain_and_inputs_stay(name: str) -> None:
    margin, (cosine, labels) = MARGINS[name](), batch(torch.float32)
    before = cosine.clone()
    logits, plain = margin(cosine, labels), margin.plain(cosine)
    others = torch.ones_like(cosine, dtype=torch.bool).scatter_(1, labels[:, None], False)
    assert torch.equal(logits[others], plain[others])
    assert (logits[~others] < plain[~others]).all()
    assert torch.equal(cosine, before)
    torch.testing.assert_close(plain, before * margin.scale)
    assert margin.plain(cosine.half()).dtype == torch.float32


@pytest.mark.parametrize("name", MARGINS)
def test_permuting_the_batch_permutes_the_result(name: str) -> None:
    margin, (cosine, labels) = MARGINS[name](), batch(torch.float32)
    order = torch.randperm(len(labels))
    logits, gradient = run(margin, cosine, labels)
    permuted_logits, permuted_gradient = run(margin, cosine[order], labels[order])
    assert torch.equal(permuted_logits, logits[order])
    assert torch.equal(permuted_gradient, gradient[order])


@pytest.mark.parametrize("name", MARGINS)
def test_no_margin_is_plain(name: str) -> None:
    margin, (cosine, labels) = MARGINS[name](margin=0.0), batch()
    torch.testing.assert_close(margin(cosine, labels), margin.plain(cosine))


def test_the_target_logit_of_arcface_never_rises_with_the_angle_before_the_guard() -> None:
    cosine = torch.linspace(1, -math.cos(0.5), 1000, dtype=torch.float64)[:, None]
    logits = ArcFace()(cosine, torch.zeros(1000, dtype=torch.int64))
    assert (logits.diff(dim=0) < 0).all()


def test_arcface_guard_is_linear_with_slope_scale() -> None:
    cosine = torch.tensor([[-0.9, 0.1], [-0.99, 0.1]], dtype=torch.float64)
    logits, gradient = run(ArcFace(margin=0.5), cosine, torch.tensor([0, 0]))
    assert logits[:, 0].tolist() == pytest.approx([64 * (value - 0.5 * math.sin(0.5)) for value in (-0.9, -0.99)])
    assert gradient[:, 0].tolist() == [64.0, 64.0]


def test_straight_through_has_the_exact_value_and_the_gradient_of_no_margin() -> None:
    cosine, labels = batch()
    exact, exact_gradient = run(ArcFace(), cosine, labels)
    straight, straight_gradient = run(ArcFace(gradient="straight_through"), cosine, labels)
    assert torch.equal(exact, straight)
    assert (straight_gradient == 64.0).all()
    assert not torch.allclose(exact_gradient, straight_gradient)


def test_only_target_vectors_are_kept_for_backward() -> None:
    kept: list[tuple[int, ...]] = []
    cosine = torch.rand(5, 100).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        ArcFace()(cosine, torch.arange(5))
    assert kept == [(5, 1), (5, 1)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"scale": scale}, r"scale must be .* above 0") for name, scale in
          itertools.product(MARGINS, (0.0, -1.0, math.nan, math.inf))),
        ("arcface", {"margin": -0.1}, r"ArcFace must lie in \[0, 1.571\), got -0.1"),
        ("arcface", {"margin": 1.6}, r"got 1.6"),
        ("arcface", {"margin": math.nan}, r"got nan"),
        ("arcface", {"gradient": "none"}, r"`exact` or `straight_through`, got `none`"),
        ("cosface", {"margin": 2.0}, r"CosFace must lie in \[0, 2\), got 2.0"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MARGINS[name](**options)


@pytest.mark.parametrize("name", MARGINS)
def test_labels_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"labels must lie in \[0, 3\)"):
        MARGINS[name]()(torch.zeros(1, 3), torch.tensor([3]))
    with pytest.raises(ConfigError, match="labels must be int64"):
        MARGINS[name]()(torch.zeros(2, 3), torch.tensor([0]))


@pytest.mark.parametrize("name", MARGINS)
def test_settings_are_shown(name: str) -> None:
    assert "scale=64.0" in repr(MARGINS[name]())
