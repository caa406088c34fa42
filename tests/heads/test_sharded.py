"""Heads whose classes are split over ranks: what each rank holds, what is drawn, what a bad setting says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gkd.core.class_shard import ClassShard
from gkd.core.errors import ConfigError
from gkd.heads import HEADS, PartialFCHead, ShardedHead, SoftmaxHead
from gkd.heads import sharded as module
from gkd.heads.products import matmul
from gkd.heads.sharded import ChunkedCosines


def on_rank(monkeypatch: pytest.MonkeyPatch, rank: int, num_ranks: int) -> None:
    """Make heads believe that they are built on this rank; what they do later needs real ranks."""
    monkeypatch.setattr("gkd.core.distributed.rank", lambda: rank)
    monkeypatch.setattr("gkd.core.distributed.world_size", lambda: num_ranks)


def test_the_table_names_them() -> None:
    assert (HEADS["sharded"], HEADS["partial_fc"]) == (ShardedHead, PartialFCHead)


@pytest.mark.parametrize("rows_at_once", [5, 16, 1000])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_together_the_ranks_hold_the_same_start_whatever_their_number(
    rows_at_once: int, num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_DRAWN_AT_ONCE", rows_at_once)
    torch.manual_seed(4)
    alone, after = ShardedHead(8, 43).weight.detach(), torch.rand(1)
    parts: list[Tensor] = []
    for rank in range(num_ranks):
        with monkeypatch.context() as patched:
            on_rank(patched, rank, num_ranks)
            torch.manual_seed(4)
            head = ShardedHead(8, 43)
        shard = ClassShard.of_rank(43, rank, num_ranks)
        assert head.shard == shard
        assert head.weight.shape == (shard.size, 8)
        assert torch.equal(torch.rand(1), after), "the next random numbers differ from rank to rank"
        parts.append(head.weight.detach())
    assert torch.equal(torch.cat(parts), alone)


def test_the_start_is_that_of_the_softmax_head() -> None:
    torch.manual_seed(4)
    expected = SoftmaxHead(8, 40).weight
    torch.manual_seed(4)
    assert torch.equal(ShardedHead(8, 40).weight, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [None, [1, 4, 5, 11]])
def test_chunks_of_scores_are_scaled_cosines(precision: str, rows: list[int] | None) -> None:
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(3, 8))
    weight = torch.randn(12, 8)
    weight[4] = 0
    index = None if rows is None else torch.tensor(rows)
    chunked = ChunkedCosines(unit, weight, index, 16.0, precision)  # type: ignore[arg-type]
    chosen = weight if index is None else weight[index]
    given = (unit, chosen) if precision == "fp32" else (unit.bfloat16().float(), chosen.bfloat16().float())
    expected = 16 * given[0].double() @ given[1].double().T / chosen.double().norm(dim=1).clamp_min(1e-12)
    for columns in (slice(0, len(chosen)), slice(1, 3), slice(0, 4, 2)):
        torch.testing.assert_close(chunked(columns).double(), expected[:, columns], rtol=1e-5, atol=1e-5)
    own = torch.tensor([[0], [2], [1]])
    torch.testing.assert_close(16 * chunked.of_each(own).double(), expected.gather(1, own), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_of_rounded_inputs_are_summed_in_fp32(precision: str) -> None:
    torch.manual_seed(0)
    left, right = torch.randn(5, 300), torch.randn(300, 7)
    rounded = (left, right) if precision == "fp32" else (left.bfloat16().float(), right.bfloat16().float())
    expected = rounded[0].double() @ rounded[1].double()
    out = torch.empty(5, 7)
    found = matmul(left, right, precision, out=out)  # type: ignore[arg-type]
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(found, matmul(left, right, precision))  # type: ignore[arg-type]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def drawn(rate: float, step: int, labels: Tensor, num_classes: int = 1000, seed: int = 3) -> Tensor:
    head = PartialFCHead(4, num_classes, sample_rate=rate)
    head.seed = seed
    in_play = head.in_play(labels, step)
    assert in_play.classes is not None
    assert in_play.num_in_play == len(in_play.classes)
    if in_play.rows is not None:
        assert torch.equal(in_play.rows, in_play.classes)  # of one rank
    return in_play.classes


def test_the_images_own_classes_are_always_in_play_and_the_others_by_the_rate() -> None:
    labels = torch.tensor([7, 999, 7, 0])
    counts = torch.zeros(1000)
    for step in range(200):
        classes = drawn(0.2, step, labels)
        assert torch.isin(labels, classes).all()
        assert (classes.diff() > 0).all()
        counts[classes] += 1
    assert (counts[labels] == 200).all()
    others = counts[torch.tensor([index for index in range(1000) if index not in (0, 7, 999)])] / 200
    assert float(others.mean()) == pytest.approx(0.2, abs=0.005)
    assert float(others.std()) == pytest.approx((0.2 * 0.8 / 200) ** 0.5, rel=0.15), "classes are not drawn alike"


def test_the_draw_is_a_function_of_seed_and_step() -> None:
    labels = torch.tensor([1, 2])
    assert torch.equal(drawn(0.3, 5, labels), drawn(0.3, 5, labels))
    assert not torch.equal(drawn(0.3, 5, labels), drawn(0.3, 6, labels))
    assert not torch.equal(drawn(0.3, 5, labels), drawn(0.3, 5, labels, seed=4))


def test_a_rate_of_one_is_the_sharded_head() -> None:
    head = PartialFCHead(4, 9, sample_rate=1.0)
    in_play = head.in_play(torch.tensor([3]), 0)
    assert in_play.rows is None
    assert in_play.classes is None
    assert in_play.num_in_play == 9


def test_with_a_tiny_rate_the_images_own_classes_are_left() -> None:
    assert all(drawn(1e-9, step, torch.tensor([2]), num_classes=5).tolist() == [2] for step in range(20))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"head.sample_rate must lie in \(0, 1\], got .* a tenth of the classes"):
        PartialFCHead(4, 9, sample_rate=rate)


def test_more_ranks_than_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_rank(monkeypatch, 0, 8)
    with pytest.raises(ConfigError, match="7 classes cannot be shared out among 8 ranks; use at most 7 ranks, or head"):
        ShardedHead(4, 7)


def test_sizes_are_shown() -> None:
    head = PartialFCHead(4, 7, sample_rate=0.5, precision="bf16")
    expected = "embedding_dim=4, num_classes=7, classes 0 to 6 here, precision=bf16, sample_rate=0.5"
    assert head.extra_repr() == expected
