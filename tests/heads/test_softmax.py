"""The full head: cosines, their gradient, and the ends of their range."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gkd.core.errors import ConfigError
from gkd.heads import HEADS, SoftmaxHead


def head_of(weight: Tensor) -> SoftmaxHead:
    head = SoftmaxHead(weight.shape[1], weight.shape[0]).to(weight.dtype)
    head.load_state_dict({"weight": weight})
    return head


def slow_cosine(left: list[float], right: list[float]) -> float:
    dot = math.fsum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(math.fsum(a * a for a in left)) / math.sqrt(math.fsum(b * b for b in right))


def test_the_table_names_the_head() -> None:
    assert HEADS["softmax"] is SoftmaxHead


def test_cosine_equals_a_loop() -> None:
    torch.manual_seed(0)
    head, embeddings = SoftmaxHead(6, 5), torch.randn(4, 6) * 3
    cosine = head.cosine(embeddings)
    expected = [[slow_cosine(row, weight) for weight in head.weight.tolist()] for row in embeddings.tolist()]
    torch.testing.assert_close(cosine.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert torch.equal(head(embeddings), cosine)


def test_gradient_is_the_derivative() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
    weight = torch.randn(5, 4, dtype=torch.float64).requires_grad_()
    head = SoftmaxHead(4, 5).double()

    def cosine(embeddings: Tensor, weight: Tensor) -> Any:
        return torch.func.functional_call(head, {"weight": weight}, (embeddings,))

    assert torch.autograd.gradcheck(cosine, (embeddings, weight))


def test_the_start_is_a_narrow_normal_distribution() -> None:
    torch.manual_seed(0)
    weight = SoftmaxHead(64, 500).weight.detach()
    assert weight.shape == (500, 64)
    assert weight.dtype == torch.float32
    assert float(weight.mean()) == pytest.approx(0, abs=3e-4)
    assert float(weight.std()) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_fp32_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head, embeddings = SoftmaxHead(32, 9), torch.randn(4, 32).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosine = head.cosine(embeddings)
    assert cosine.dtype == torch.float32
    assert torch.equal(cosine, head.cosine(embeddings.float()))


def test_never_outside_its_range_and_the_gradient_survives_there() -> None:
    torch.manual_seed(0)
    weight = torch.randn(400, 33)
    embeddings = weight * 7.3 + torch.randn(400, 33) * 1e-3  # angles of about 1e-4, whose cosines round to 1 or above
    unit = torch.nn.functional.normalize
    is_outside = (unit(embeddings) @ unit(weight).T).diagonal() > 1
    assert is_outside.any(), "the case under test does not arise"

    def gradient_of(dtype: torch.dtype) -> Tensor:
        leaf = embeddings.to(dtype).requires_grad_()
        cosine = head_of(weight.to(dtype)).cosine(leaf)
        assert cosine.abs().max() <= 1
        return torch.autograd.grad(cosine.diagonal().sum(), leaf)[0][is_outside].double()

    expected = gradient_of(torch.float64)
    assert (gradient_of(torch.float32) - expected).norm() < 0.05 * expected.norm()


def test_zero_rows_give_zero_cosine_and_zero_gradient() -> None:
    weight = torch.randn(3, 4)
    weight[1] = 0
    head, embeddings = head_of(weight), torch.randn(2, 4)
    embeddings[0] = 0
    embeddings.requires_grad_()
    cosine = head.cosine(embeddings)
    assert cosine[0].tolist() == [0, 0, 0]
    assert cosine[:, 1].tolist() == [0, 0]
    cosine.sum().backward()
    assert embeddings.grad is not None
    assert head.weight.grad is not None
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[0].tolist() == [0] * 4
    assert head.weight.grad[1].tolist() == [0] * 4
    assert head.weight.grad[0].abs().sum() > 0


def test_the_length_of_vectors_does_not_matter() -> None:
    torch.manual_seed(0)
    embeddings, weight = torch.randn(3, 8), torch.randn(5, 8)
    before = embeddings.clone()
    torch.testing.assert_close(head_of(weight * 1e3).cosine(embeddings * 1e-3), head_of(weight).cosine(embeddings))
    assert torch.equal(embeddings, before)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (-1, 4)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"at least 1, got {sizes[0]} and {sizes[1]}"):
        SoftmaxHead(*sizes)


@pytest.mark.parametrize("shape", [(2, 5), (4,), (2, 4, 1)])
def test_embeddings_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"shape \(N, 4\), got .*embedding_dim must be equal"):
        SoftmaxHead(4, 3).cosine(torch.zeros(shape))


def test_sizes_are_shown() -> None:
    assert repr(SoftmaxHead(4, 3)) == "SoftmaxHead(embedding_dim=4, num_classes=3)"
