"""The shares of the classes, and sums over them on one, two and three ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gkd.core.class_shard import ClassShard
from gkd.core.distributed import end_process
from gkd.core.errors import ConfigError

NUM_CLASSES = 7


def scores() -> Tensor:
    """(4, C): of any kind, far from 0, all -inf, and -inf but for the first class."""
    values = torch.randn(4, NUM_CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[1] += 5000.0
    values[2] = -math.inf
    values[3, 1:] = -math.inf
    return values


def found_by_rank() -> dict[str, Any]:
    shard = ClassShard.of_rank(NUM_CLASSES)
    own = scores()[:, shard.start : shard.stop]
    numbers = torch.tensor([shard.size, -shard.start])
    summed, greatest = numbers.clone(), numbers.clone()
    assert shard.sum(summed) is summed
    assert shard.max(greatest) is greatest
    local = own.logsumexp(dim=1)
    kept = local.clone()
    total = shard.log_sum_exp(local)
    assert torch.equal(local, kept), "the argument is left as it is"
    counts = torch.tensor([[shard.start, 1], [0, shard.size]])
    before = shard.exclusive_sum(counts)
    return {
        "bounds": (shard.start, shard.stop),
        "is_whole": shard.is_whole,
        "holds": shard.holds(torch.arange(NUM_CLASSES)),
        "sum": summed,
        "max": greatest,
        "log_sum_exp": total,
        "log_sum_exp_fp32": shard.log_sum_exp(local.float()),
        "counts": counts,
        "before": before,
    }


def one_rank(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", num_ranks), rank=rank, world_size=num_ranks)
    torch.save(found_by_rank(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the number of ranks."""
    found = {1: [found_by_rank()]}
    for num_ranks in (2, 3):
        folder: Path = tmp_path_factory.mktemp("ranks")
        mp.spawn(one_rank, (num_ranks, str(folder)), nprocs=num_ranks)
        found[num_ranks] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(num_ranks)]
    return found


@given(st.integers(1, 64), st.integers(0, 10**7))
def test_shares_cover_the_classes_in_order(num_ranks: int, more: int) -> None:
    num_classes = num_ranks + more
    shards = [ClassShard.of_rank(num_classes, rank, num_ranks) for rank in range(num_ranks)]
    assert (shards[0].start, shards[-1].stop) == (0, num_classes)
    for rank, shard in enumerate(shards):
        assert shard.size == num_classes // num_ranks + (rank < num_classes % num_ranks)
        assert shard.start == num_classes // num_ranks * rank + min(rank, num_classes % num_ranks)
        assert rank == 0 or shard.start == shards[rank - 1].stop
        assert shard.is_whole is (num_ranks == 1)


def test_the_shares_of_ms1mv2_on_eight_ranks() -> None:
    sizes = [ClassShard.of_rank(85_742, rank, 8).size for rank in range(8)]
    assert sizes == [10_718] * 6 + [10_717] * 2


def test_more_ranks_than_classes_are_refused() -> None:
    message = "3 classes cannot be shared out among 4 ranks; use at most 3 ranks, or head.name=softmax"
    with pytest.raises(ConfigError, match=message):
        ClassShard.of_rank(3, 0, 4)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_sums_over_ranks(num_ranks: int, ranks: dict[int, list[dict[str, Any]]]) -> None:
    found = ranks[num_ranks]
    expected = scores().logsumexp(dim=1)
    for rank, one in enumerate(found):
        shard = ClassShard.of_rank(NUM_CLASSES, rank, num_ranks)
        assert one["bounds"] == (shard.start, shard.stop)
        assert one["is_whole"] is (num_ranks == 1)
        assert one["holds"].nonzero().flatten().tolist() == list(range(shard.start, shard.stop))
        assert one["sum"][0] == NUM_CLASSES
        assert one["sum"][1] == -sum(other["bounds"][0] for other in found)
        assert one["max"].tolist() == [found[0]["bounds"][1], 0]
        assert one["log_sum_exp"].dtype == torch.float64
        torch.testing.assert_close(one["log_sum_exp"], expected, rtol=1e-14, atol=1e-14)
        assert one["log_sum_exp_fp32"].dtype == torch.float32
        torch.testing.assert_close(one["log_sum_exp_fp32"], expected.float())


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_exclusive_sum_is_that_of_the_ranks_before(num_ranks: int, ranks: dict[int, list[dict[str, Any]]]) -> None:
    before = torch.zeros(2, 2, dtype=torch.int64)
    for one in ranks[num_ranks]:
        assert torch.equal(one["before"], before)
        before += one["counts"]
