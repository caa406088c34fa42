"""Sharded heads with Grouped KD: on 1, 2 and 3 ranks equal to one process with whole matrices in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from gkd.core.class_shard import ClassShard
from gkd.core.errors import DataError
from gkd.distill import GroupedKD, TopK
from gkd.heads import ArcFace, PartialFCHead, ShardedHead, SoftmaxHead
from gkd.train.fused_head import fused_losses
from gkd.train.optim import build_sgd, clip_gradients
from tests.reference import fused_head as reference
from tests.train import sharded_steps
from tests.train.sharded_steps import CASES, Case

Found = list[dict[str, dict[str, Tensor]]]
PARTS = ("classification", "total", "binary", "primary", "secondary")
STATS = ("group_size", "secondary_size", "student_primary_mass", "teacher_primary_mass")
# Sums in fp32 of 16 or 32 products, and exponentials of their 24 times.
VALUE_TOLERANCE = 2e-5
# With bf16 the gradients' own products have rounded inputs.
GRADIENT_TOLERANCE = {"fp32": 2e-5, "bf16": 6e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What 2 and 3 ranks leave there."""
    path = tmp_path_factory.mktemp("ranks")
    for num_ranks in (2, 3):
        mp.spawn(sharded_steps.one_rank, (num_ranks, str(path)), nprocs=num_ranks)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[int, list[Found]]:
    """What each rank found, by the number of ranks."""
    ranks = {1: [sharded_steps.results()]}
    for num_ranks in (2, 3):
        files = [folder / f"{num_ranks}_{rank}.pt" for rank in range(num_ranks)]
        ranks[num_ranks] = [torch.load(file, weights_only=True) for file in files]
    return ranks


def whole(case: Case, in_play: Tensor) -> dict[str, Tensor]:
    """The reference, over the classes in play alone; gradients of others are 0."""
    student, teacher, labels = case.sides()
    places = torch.full((case.num_classes,), -1).scatter_(0, in_play, torch.arange(len(in_play)))
    student, teacher = (replace(side, weight=side.weight[in_play]) for side in (student, teacher))
    expected = reference.step(student, teacher, places[labels], case.loss, case.precision, case.margins)
    weight = torch.zeros(case.num_classes, student.weight.shape[1], dtype=torch.float64)
    return expected | {"weight": weight.index_copy_(0, in_play, expected["weight"])}


def gap(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm().clamp_min(1e-6))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: repr(CASES[number]))
def test_losses_and_gradients_are_those_of_whole_matrices(number: int, found: dict[int, list[Found]]) -> None:
    case = CASES[number]
    in_play = found[1][0][number]["fused"]["in_play"]
    expected = whole(case, in_play)
    for ranks in found.values():
        shares = [rank[number]["fused"] for rank in ranks]
        assert torch.equal(torch.cat([share["in_play"] for share in shares]), in_play)
        for name in (*PARTS, *STATS):
            total = sum(float(share[name]) for share in shares)
            assert total == pytest.approx(float(expected[name]), rel=VALUE_TOLERANCE, abs=VALUE_TOLERANCE), name
        for name in ("embeddings", "weight"):
            given = torch.cat([share[name] for share in shares])
            assert gap(given, expected[name]) < GRADIENT_TOLERANCE[case.precision], name


@pytest.mark.parametrize(
    "number", [i for i, case in enumerate(CASES) if case.precision == "fp32"], ids=lambda number: repr(CASES[number])
)
def test_given_logits_have_the_losses_and_the_gradient_of_whole_ones(
    number: int, found: dict[int, list[Found]]
) -> None:
    case = CASES[number]
    student, teacher, labels = case.sides()
    logits = reference.logits(student, labels, "fp32").float().double().requires_grad_()
    losses = case.loss(logits, reference.logits(teacher, labels, "fp32").float().double(), labels)
    losses.total.backward()
    assert logits.grad is not None
    expected = {"total": losses.total, **losses.parts, **losses.stats}
    for ranks in found.values():
        shares = [rank[number]["logits"] for rank in ranks]
        for share in shares:
            for name, value in expected.items():
                assert float(share[name]) == pytest.approx(float(value.detach()), rel=1e-5, abs=1e-5), name
        assert gap(torch.cat([share["grad"] for share in shares], dim=1), logits.grad) < 1e-5


def test_the_cases_are_what_they_are_called() -> None:
    student, _, labels = Case(1000, "top 5", "fp32", "tied").sides()
    best = reference.logits(student, labels, "fp32").float().sort(dim=1, descending=True).values
    assert (best[:, 4] == best[:, 5]).all(), "no ties at the cut-off"
    for num_classes in sharded_steps.CLASSES:
        _, _, labels = Case(num_classes, "top 5", "fp32", "labels of the last rank").sides()
        for num_ranks in (2, 3):
            assert ClassShard.of_rank(num_classes, num_ranks - 1, num_ranks).holds(labels).all()


def test_without_a_teacher_it_is_the_softmax_head_with_any_margin() -> None:
    torch.manual_seed(2)
    head, softmax, margin = ShardedHead(6, 40), SoftmaxHead(6, 40), ArcFace(scale=8.0)
    softmax.load_state_dict({"weight": head.weight.detach()})
    given, labels = torch.randn(5, 6), torch.randint(0, 40, (5,))
    one, other = given.clone().requires_grad_(), given.clone().requires_grad_()
    losses, distilled = fused_losses(head, margin, one, labels, 0)
    assert distilled is None
    losses.total.backward()
    cosine = softmax.cosine(other)
    expected = torch.nn.functional.cross_entropy(margin(cosine, labels), labels)
    expected.backward()
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(head.weight.grad, softmax.weight.grad)
    assert float(losses.stats["accuracy"]) == float((cosine.argmax(1) == labels).float().mean())
    torch.testing.assert_close(losses.stats["target_cosine"], cosine.gather(1, labels[:, None]).mean())


@pytest.mark.parametrize("label", [-1, 40])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    with pytest.raises(DataError, match=r"labels must lie in \[0, 40\).*num_classes match the data"):
        fused_losses(ShardedHead(6, 40), ArcFace(), torch.randn(2, 6), torch.tensor([3, label]), 0)


def test_a_label_of_one_rank_is_refused_by_all_so_that_none_waits(folder: Path) -> None:
    texts = {path.read_text() for path in folder.glob("*.txt")}
    assert len(list(folder.glob("*.txt"))) == 2 + 3
    assert len(texts) == 1
    assert "labels must lie in [0, 1000), the number of classes, but range from 0 to 1000" in texts.pop()


@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_given_logits_may_be_of_any_size(shift: float) -> None:
    """exp overflows in fp32 from 88 on."""
    torch.manual_seed(1)
    student, teacher = torch.randn(2, 4, 30).unbind()
    labels = torch.randint(0, 30, (4,))
    one, other = ((student * 4).requires_grad_(), (student * 4 + shift).requires_grad_())
    loss = GroupedKD(secondary_weight=0.5, grouping=TopK(k=5))
    loss(one, teacher, labels).total.backward()
    loss(other, teacher - shift, labels, shard=ClassShard(30, 0, 30)).total.backward()
    # Of a logit of 300 fp32 keeps 3e-5, which T squared and the weights enlarge.
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-4)


def test_partial_fc_leaves_rows_that_are_not_in_play_as_they_are() -> None:
    """Through the head, clipping and the optimiser: weights and momentum, bit for bit, in every step."""
    torch.manual_seed(5)
    head = PartialFCHead(6, 60, sample_rate=0.2)
    optimizer = build_sgd(head, lr=0.1, momentum=0.9, weight_decay=0.05)
    was_touched = torch.zeros(60, dtype=torch.bool)
    for step in range(6):
        labels = torch.randint(0, 60, (4,))
        in_play = head.in_play(labels, step).classes
        assert in_play is not None
        before = head.weight.detach().clone()
        state = optimizer.state[head.weight].get("momentum_buffer")
        momentum = torch.zeros(60, 6) if state is None else state.clone()
        optimizer.zero_grad()
        fused_losses(head, ArcFace(scale=8.0), torch.randn(4, 6), labels, step)[0].total.backward()
        clip_gradients([head.weight], 0.01, [head.weight])
        optimizer.step()
        rest = torch.ones(60, dtype=torch.bool).index_fill_(0, in_play, value=False)
        after = optimizer.state[head.weight]["momentum_buffer"]
        assert torch.equal(head.weight.detach()[rest], before[rest])
        assert torch.equal(after[rest], momentum[rest])
        assert (head.weight.detach()[in_play] != before[in_play]).any(dim=1).all()
        assert (after[in_play] != momentum[in_play]).any(dim=1).all()
        was_touched |= ~rest
    # Some rows had momentum that a dense step would have moved.
    assert (was_touched & rest).any()


def test_weights_that_change_before_the_way_back_are_noticed() -> None:
    head = ShardedHead(6, 40)
    losses, _ = fused_losses(head, ArcFace(), torch.randn(2, 6), torch.tensor([3, 4]), 0)
    with torch.no_grad():
        head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.total.backward()


def test_zero_vectors_have_zero_cosine_and_no_gradient() -> None:
    head = ShardedHead(6, 40)
    with torch.no_grad():
        head.weight[7] = 0
    embeddings = torch.randn(3, 6)
    embeddings[1] = 0
    embeddings.requires_grad_()
    losses, _ = fused_losses(head, ArcFace(), embeddings, torch.tensor([3, 4, 7]), 0)
    losses.total.backward()
    assert embeddings.grad is not None
    assert head.weight.grad is not None
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[1].tolist() == [0] * 6
    assert head.weight.grad[7].tolist() == [0] * 6
    assert head.weight.grad[8].abs().sum() > 0


def test_gradients_can_be_asked_for_twice() -> None:
    head = ShardedHead(6, 40)
    embeddings = torch.randn(3, 6, requires_grad=True)
    losses, _ = fused_losses(head, ArcFace(), embeddings, torch.tensor([3, 4, 7]), 0)
    first = torch.autograd.grad(losses.total, (embeddings, head.weight), retain_graph=True)
    second = torch.autograd.grad(losses.total, (embeddings, head.weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
