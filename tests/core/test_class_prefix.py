"""The smallest number of greatest masses that reach a sum, against a sort and a running sum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gkd.core.class_chunks import EXCLUDED
from gkd.core.class_prefix import smallest_prefix, smallest_prefix_of_rows
from gkd.core.class_selection import Sweep
from gkd.core.class_shard import ClassShard
from gkd.core.distributed import end_process

SIZES = (7, 1000, 10_007)
KINDS = ("random", "tied", "equal", "peaked", "sparse")
SHARES = (1e-9, 0.3, 0.93, 0.9999, 2.0)
INVERSE_TEMPERATURES = (1.0, 0.25)
TOLERANCE = 1e-6


def masses_of(num_classes: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(num_classes, generator=generator, dtype=torch.float64) * 2
    if kind == "tied":
        logits = logits.round()
    elif kind == "equal":
        logits.zero_()
    elif kind == "peaked":
        logits[num_classes // 2] = 30.0
    masses = logits.softmax(dim=0) * 64
    return torch.where(logits > 1, masses, 0.0) if kind == "sparse" else masses


def scores_of(num_classes: int) -> tuple[Tensor, Tensor]:
    """Scores (5, C) and the labels (5,): flat, of any kind, sure of the target, against it, tied."""
    generator = torch.Generator().manual_seed(num_classes)
    spreads = torch.tensor([0.0, 2.0, 1.0, 4.0, 2.0])[:, None]
    scores = torch.randn(5, num_classes, generator=generator) * spreads + 3
    labels = torch.randint(0, num_classes, (5,), generator=generator)
    scores[2, labels[2]], scores[3, labels[3]] = 40.0, -300.0
    scores[4] = scores[4].round()
    return scores, labels


def check(masses: Tensor, due: float, k: int) -> None:
    """`k` of `masses` suffice and k - 1 do not, but for the tolerance."""
    reached = masses.double().sort(descending=True).values.cumsum(dim=0)
    assert 1 <= k <= len(masses)
    if k < len(masses):
        assert float(reached[k - 1]) >= due * (1 - TOLERANCE), (k, due)
    if k > 1:
        assert float(reached[k - 2]) < due * (1 + TOLERANCE), (k, due)
    if float(reached[-1]) < due * (1 - TOLERANCE):
        assert k == len(masses)


def sweep_of(scores: Tensor, labels: Tensor, shard: ClassShard) -> Sweep:
    without_targets = scores.scatter(1, labels[:, None], EXCLUDED)

    def sweep(stride: int) -> Iterator[tuple[Tensor, Tensor]]:
        for own in torch.arange(shard.start, shard.stop).split(700):
            yield own[::stride], without_targets[:, own[::stride]]

    return sweep


def rows_case(num_classes: int, inverse_temperature: float, threshold: float) -> Tensor:
    scores, labels = scores_of(num_classes)
    shard = ClassShard.of_rank(num_classes)
    log_p = probabilities(scores, inverse_temperature).log()
    normaliser = (scores.double() * inverse_temperature).logsumexp(dim=1)
    target = log_p.gather(1, labels[:, None]).squeeze(1).exp()
    sweep = sweep_of(scores, labels, shard)
    return smallest_prefix_of_rows(sweep, normaliser, inverse_temperature, threshold, target, shard)


def probabilities(scores: Tensor, inverse_temperature: float) -> Tensor:
    return (scores.double() * inverse_temperature).softmax(dim=1)


ROW_CASES = [(size, scale, due) for size in SIZES for scale in INVERSE_TEMPERATURES for due in (1e-9, 0.5, 0.93, 1.0)]
CASES = [(size, kind, share) for size in SIZES for kind in KINDS for share in SHARES]


def one_rank(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", num_ranks), rank=rank, world_size=num_ranks)
    found = []
    for size, kind, share in CASES:
        masses, shard = masses_of(size, kind), ClassShard.of_rank(size)
        k = smallest_prefix(masses[shard.start : shard.stop], masses.sum() * share, shard)
        assert (k.shape, k.dtype) == ((), torch.int64)
        found.append(int(k))
    by_row = [rows_case(*case).tolist() for case in ROW_CASES]
    spoilt = torch.full((shard.size,), float("nan"), dtype=torch.float64)
    assert int(smallest_prefix(spoilt, torch.tensor(1.0, dtype=torch.float64), shard)) >= 1
    torch.save((found, by_row), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[int], list[list[int]]]]:
    """What each of two, then each of three ranks found."""
    found = []
    for num_ranks in (2, 3):
        folder: Path = tmp_path_factory.mktemp("ranks")
        mp.spawn(one_rank, (num_ranks, str(folder)), nprocs=num_ranks)
        found += [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(num_ranks)]
    return found


def test_ranks_agree_with_a_sort(ranks: list[tuple[list[int], list[list[int]]]]) -> None:
    for number, (size, kind, share) in enumerate(CASES):
        masses = masses_of(size, kind)
        for found, _ in ranks:
            check(masses, float(masses.sum()) * share, found[number])


def test_rows_agree_with_a_sort_on_any_number_of_ranks(ranks: list[tuple[list[int], list[list[int]]]]) -> None:
    for number, (size, inverse_temperature, threshold) in enumerate(ROW_CASES):
        alone = rows_case(size, inverse_temperature, threshold)
        assert (alone.shape, alone.dtype) == ((5,), torch.int64)
        masses = probabilities(scores_of(size)[0], inverse_temperature)
        for found in [alone.tolist(), *(by_row[number] for _, by_row in ranks)]:
            for row, k in zip(masses, found, strict=True):
                check(row, threshold, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", SHARES)
def test_one_rank_is_the_dense_rule(kind: str, share: float) -> None:
    masses = masses_of(1000, kind)
    due = masses.sum() * share
    reached, k = 0.0, 0
    for mass in sorted(masses.tolist(), reverse=True):
        reached, k = reached + mass, k + 1
        if reached >= due:
            break
    assert int(smallest_prefix(masses, due, ClassShard.of_rank(1000))) == k


def test_the_target_counts_as_one_class() -> None:
    shard = ClassShard.of_rank(3)
    scores = torch.tensor([[0.2, 0.5, 0.3]]).log()
    for label, probability in enumerate([0.2, 0.5, 0.3]):
        for threshold, k in ((0.4, 1), (0.7, 2), (0.9, 3)):
            sweep = sweep_of(scores, torch.tensor([label]), shard)
            target = torch.tensor([probability], dtype=torch.float64)
            normaliser = torch.zeros(1, dtype=torch.float64)
            found = smallest_prefix_of_rows(sweep, normaliser, 1.0, threshold, target, shard)
            assert found.tolist() == [k]


def test_what_is_never_reached_takes_every_class_and_the_target_once() -> None:
    scores, shard = torch.tensor([[0.2, 0.5, 0.3]]).log(), ClassShard.of_rank(3)
    for probability in (0.0, 1e-300):
        target = torch.tensor([probability], dtype=torch.float64)
        sweep = sweep_of(scores, torch.tensor([1]), shard)
        found = smallest_prefix_of_rows(sweep, torch.zeros(1, dtype=torch.float64), 1.0, 0.93, target, shard)
        assert found.tolist() == [3]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from([-30.0, -2.0, 0.0, 3.0]) | st.floats(-60, 60, width=32), min_size=2, max_size=30),
    st.integers(0, 29),
    st.floats(1e-6, 1.0),
    st.sampled_from([1.0, 0.25, 4.0]),
)
def test_any_row(values: list[float], label: int, threshold: float, inverse_temperature: float) -> None:
    scores, shard = torch.tensor([values]), ClassShard.of_rank(len(values))
    labels = torch.tensor([label % len(values)])
    masses = probabilities(scores, inverse_temperature)
    normaliser = (scores.double() * inverse_temperature).logsumexp(dim=1)
    sweep = sweep_of(scores, labels, shard)
    target = masses[0, labels]
    found = smallest_prefix_of_rows(sweep, normaliser, inverse_temperature, threshold, target, shard)
    check(masses[0], threshold, int(found))
