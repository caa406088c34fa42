"""The best classes over chunks and ranks, against a sort of each row by (score descending, class ascending)."""

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

from gkd.core import class_selection
from gkd.core.class_chunks import EXCLUDED, Primary
from gkd.core.class_selection import Cutoff, best_classes
from gkd.core.class_shard import ClassShard
from gkd.core.distributed import end_process
from gkd.core.radix_select import order_keys, values_of_keys

SIZES = (7, 1000, 10_007)
KINDS = ("random", "bf16", "two_values", "equal", "zeros", "interleaved")
# How a search goes, by its limits: (least sample, candidates at most one entry in so many).
WAYS = {"whole": (4096, 8), "bracket": (64, 2), "histograms": (64, 10**9)}
CASES = [(num_classes, kind, way) for num_classes in SIZES for kind in KINDS for way in WAYS]


def scores_of(num_classes: int, kind: str) -> Tensor:
    """(4, C), one entry of each row excluded."""
    generator = torch.Generator().manual_seed(num_classes)
    scores = torch.randn(4, num_classes, generator=generator) * 3
    if kind == "bf16":
        scores = scores.bfloat16().float()
    elif kind == "two_values":
        scores = (scores > 1).float() - 0.5
    elif kind == "equal":
        scores = torch.full_like(scores, -2.5)
    elif kind == "zeros":
        scores = torch.where(scores > 4, scores, scores.sign() * 0.0)
    elif kind == "interleaved":
        scores[:, ::2] += 100.0  # a sample of every second class tells nothing of the others
    targets = torch.randint(0, num_classes, (4, 1), generator=generator)
    return scores.scatter(1, targets, EXCLUDED)


def counts_of(num_classes: int) -> Tensor:
    return torch.tensor([num_classes // 3, 0, 1, num_classes - 1])


class ToySweep:
    """This rank's chunks of `scores`; counts its whole sweeps. A sample's bits differ a little, as a GPU's would."""

    def __init__(self, scores: Tensor, shard: ClassShard, width: int) -> None:
        self.scores, self.shard, self.width = scores, shard, width
        self.num_whole = 0

    def __call__(self, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.num_whole += stride == 1
        classes = torch.arange(self.shard.start, self.shard.stop)
        for own in classes.split(self.width):
            own = own[::stride]
            yield own, self.scores[:, own] * (1 if stride == 1 else 1 + 1e-7)


def reference(scores: Tensor, counts: Tensor) -> Tensor:
    chosen = torch.zeros(scores.shape, dtype=torch.bool)
    for row, (values, count) in enumerate(zip(scores.tolist(), counts.tolist(), strict=True)):
        best = sorted(range(len(values)), key=lambda j, values=values: (-values[j], j))  # type: ignore[misc]
        chosen[row, best[:count]] = True
    return chosen


def mask_of(cutoff: Cutoff, classes: Tensor, scores: Tensor) -> Tensor:
    """What is made of a cut-off where it is used."""
    return Primary(cutoff.value, cutoff.last_class, ranked_is_student=True).mask(classes, scores, scores).bool()


def select(sweep: ToySweep, counts: Tensor) -> tuple[Cutoff, Tensor]:
    cutoff = best_classes(sweep, counts, sweep.shard.num_classes, sweep.shard)
    return cutoff, torch.cat([mask_of(cutoff, *chunk) for chunk in sweep(1)], dim=1)


def set_way(patch: pytest.MonkeyPatch, way: str) -> None:
    patch.setattr(class_selection, "_MIN_SAMPLE", WAYS[way][0])
    patch.setattr(class_selection, "_MAX_CANDIDATE_SHARE", WAYS[way][1])


def one_rank(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", num_ranks), rank=rank, world_size=num_ranks)
    saved = []
    for num_classes, kind, way in CASES:
        with pytest.MonkeyPatch.context() as patch:
            set_way(patch, way)
            sweep = ToySweep(scores_of(num_classes, kind), ClassShard.of_rank(num_classes), 3 + num_classes // 7)
            cutoff, mask = select(sweep, counts_of(num_classes))
        saved.append((cutoff.value, mask, sweep.num_whole))
    dirty = scores_of(10_007, "random")
    dirty[:2, rank :: 2 + rank] = float("nan")
    dirty[2:] = float("nan")
    select(ToySweep(dirty, ClassShard.of_rank(10_007), 1000), counts_of(10_007))  # it ends, and ranks stay in step
    torch.save(saved, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[tuple[Tensor, Tensor, int]]]]:
    """What each of two and each of three ranks found, case by case."""
    found = {}
    for num_ranks in (2, 3):
        folder: Path = tmp_path_factory.mktemp("ranks")
        mp.spawn(one_rank, (num_ranks, str(folder)), nprocs=num_ranks)
        found[num_ranks] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(num_ranks)]
    return found


@pytest.mark.parametrize(("num_classes", "kind", "way"), CASES)
def test_one_rank_equals_a_sort(num_classes: int, kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_way(monkeypatch, way)
    scores, counts = scores_of(num_classes, kind), counts_of(num_classes)
    cutoff, mask = select(ToySweep(scores, ClassShard.of_rank(num_classes), 3 + num_classes // 7), counts)
    assert torch.equal(mask, reference(scores, counts))
    assert cutoff.value.shape == cutoff.last_class.shape == (4, 1)
    assert (cutoff.value.dtype, cutoff.last_class.dtype) == (torch.float32, torch.int64)
    assert (float(cutoff.value[1]), int(cutoff.last_class[1])) == (float("inf"), -1)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_number_of_ranks_equals_a_sort(
    num_ranks: int, ranks: dict[int, list[list[tuple[Tensor, Tensor, int]]]]
) -> None:
    for number, (num_classes, kind, _) in enumerate(CASES):
        found = [rank[number] for rank in ranks[num_ranks]]
        expected = reference(scores_of(num_classes, kind), counts_of(num_classes))
        assert torch.equal(torch.cat([mask for _, mask, _ in found], dim=1), expected), CASES[number]
        assert all(torch.equal(value, found[0][0]) for value, _, _ in found)


def test_each_way_is_gone(ranks: dict[int, list[list[tuple[Tensor, Tensor, int]]]]) -> None:
    """Whole sweeps, less the one of the test: 1 by candidates; 1 + 4 by histograms, and 1 where ties are split."""

    def num_sweeps(kind: str, way: str) -> set[int]:
        number = CASES.index((10_007, kind, way))
        return {rank[number][2] - 1 for ranks_found in ranks.values() for rank in ranks_found}

    assert num_sweeps("random", "whole") == {1}
    assert num_sweeps("random", "bracket") == {1}
    assert num_sweeps("random", "histograms") == {5}
    assert num_sweeps("equal", "bracket") <= {5, 6}
    assert 6 in num_sweeps("equal", "bracket")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_scores_and_counts(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(2, 40))
    numbers = st.sampled_from([-0.0, 0.0, 1e-40, -1e-40, 1.0, 64.0]) | st.floats(-1e6, 1e6, width=32)
    row = st.lists(numbers, min_size=num_classes, max_size=num_classes)
    scores = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    scores[:, data.draw(st.integers(0, num_classes - 1))] = EXCLUDED
    count = st.integers(0, num_classes - 1)
    counts = torch.tensor(data.draw(st.lists(count, min_size=len(scores), max_size=len(scores))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_selection, "_MIN_SAMPLE", data.draw(st.sampled_from([1, 8, 4096])))
        patch.setattr(class_selection, "_MAX_CANDIDATE_SHARE", data.draw(st.sampled_from([1, 3])))
        sweep = ToySweep(scores, ClassShard.of_rank(num_classes), data.draw(st.integers(1, num_classes)))
        assert torch.equal(select(sweep, counts)[1], reference(scores, counts))


def test_a_bracket_that_missed_is_made_good(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, counts = scores_of(10_007, "random"), counts_of(10_007)
    wrong = torch.full((4, 1), 50.0)
    monkeypatch.setattr(class_selection, "_bracket", lambda *_: (wrong, wrong))
    sweep = ToySweep(scores, ClassShard.of_rank(10_007), 1000)
    assert torch.equal(select(sweep, counts)[1], reference(scores, counts))
    assert sweep.num_whole == 1 + 4 + 1, "the last is the test's own"


def test_brackets_hold_the_cutoff_and_little_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_selection, "_MIN_SAMPLE", 1000)
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(200, 20_000, generator=generator)
    counts = torch.randint(1, 20_000, (200,), generator=generator)
    counts[:20] = torch.arange(1, 21)
    shard = ClassShard.of_rank(20_000)
    low, high = class_selection._bracket(ToySweep(scores, shard, 5000), 16, counts, 20_000, shard)
    inside = (scores >= low) & (scores <= high)
    cut = scores.sort(dim=1, descending=True).values.gather(1, counts[:, None] - 1)
    assert bool(((low <= cut) & (cut <= high)).all())
    assert float(inside.float().mean()) < 0.15
    assert int(inside[:20].sum(dim=1).max()) < 600, "few above the cut-off leave few candidates"


def test_a_rank_without_scores_takes_no_part() -> None:
    shard = ClassShard.of_rank(100_000)
    cutoff = best_classes(lambda _: iter([]), torch.zeros(3, dtype=torch.int64), 100_000, shard)
    assert not mask_of(cutoff, torch.arange(4), torch.randn(3, 4)).any()


def test_keys_have_the_order_of_the_numbers() -> None:
    numbers = torch.tensor([-float("inf"), -1e30, -2.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0000001, float("inf")])
    keys = order_keys(numbers).tolist()
    assert keys == sorted(keys)
    assert (keys[4], len(set(keys))) == (keys[5], len(keys) - 1)
    assert torch.equal(values_of_keys(order_keys(numbers)), numbers)
