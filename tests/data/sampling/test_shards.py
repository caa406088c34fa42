"""The order that reads tar shards one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import ConfigError
from gkd.data import RecordFile
from gkd.data.batches import BatchPlan, share
from gkd.data.sampling.order import generator
from gkd.data.sampling.shards import Shards, ShardsOrder
from gkd.data.tar_shards import TarShards
from gkd.data.tar_writing import write_shards
from tests.data.faces import write_faces

SHARD_SIZES = (50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 7)


def shard_ids(sizes: Sequence[int] = SHARD_SIZES) -> tuple[np.ndarray, ...]:
    ids = np.random.default_rng(0).permutation(sum(sizes)).astype(np.int32)
    return tuple(np.split(ids, np.cumsum(sizes)[:-1]))


def order(batch_size: int = 16, lanes: int = 4, seed: int = 3) -> ShardsOrder:
    return ShardsOrder(shard_ids(), seed, batch_size, lanes)


def slow_epoch(ids: Sequence[np.ndarray], seed: int, epoch: int, batch_size: int, lanes: int) -> list[int]:
    """Written down from the description, position by position."""
    row: list[int] = []
    for number in generator(seed, epoch).permutation(len(ids)):
        within = ids[number].astype(np.int64)
        generator(seed, epoch, 1 + int(number)).shuffle(within)
        row += within.tolist()
    length = len(row) // lanes
    taken = [0] * lanes
    result = []
    for _ in range(length // (batch_size // lanes)):
        for position in range(batch_size):
            lane = position * lanes // batch_size
            result.append(row[lane * length + taken[lane]])
            taken[lane] += 1
    for lane in range(lanes):
        result += row[lane * length + taken[lane] : (lane + 1) * length]
    return result


@pytest.mark.parametrize(("batch_size", "lanes"), [(16, 4), (16, 1), (8, 8), (30, 5), (600, 4)])
def test_order_is_as_described(batch_size: int, lanes: int) -> None:
    made = order(batch_size, lanes)
    for epoch in (0, 1, 7):
        ids = made.epoch(epoch)
        assert ids.dtype == np.int64
        assert ids.tolist() == slow_epoch(shard_ids(), 3, epoch, batch_size, lanes)


def test_each_image_at_most_once_an_epoch_and_the_rest_is_told() -> None:
    made, num_images = order(), sum(SHARD_SIZES)
    plan = BatchPlan(made, batch_size=16)
    assert num_images == 607
    assert made.images_per_epoch == 604
    assert plan.steps_per_epoch == 37
    seen = np.concatenate([task.sample_ids for task in plan.tasks(0, 37)])
    left_out = plan.left_out(0)
    assert len(np.unique(np.concatenate([seen, left_out]))) == len(seen) + len(left_out) == 604
    assert made.describe() == (
        "shards sampling: 604 images an epoch from 13 shards in 4 lanes; a batch mixes 4 shards; 3 images, others each "
        "epoch, fill no lane"
    )


def test_a_pure_function_of_seed_and_epoch() -> None:
    assert np.array_equal(order().epoch(5), order().epoch(5))
    assert not np.array_equal(order().epoch(5), order().epoch(6))
    assert not np.array_equal(order().epoch(5), order(seed=4).epoch(5))
    made = order()
    before = [ids.copy() for ids in made.shard_ids]
    made.epoch(0)[:] = 0
    assert all(np.array_equal(old, new) for old, new in zip(before, made.shard_ids, strict=True))


def test_resuming_gives_the_same_batches() -> None:
    plan = BatchPlan(order(), batch_size=16)
    whole = [task.sample_ids.tolist() for task in plan.tasks(0, 80)]
    assert [task.sample_ids.tolist() for task in plan.tasks(41, 80)] == whole[41:]


def test_a_batch_mixes_as_many_shards_as_lanes() -> None:
    owner = np.empty(sum(SHARD_SIZES), dtype=np.int64)
    for number, ids in enumerate(shard_ids()):
        owner[ids] = number
    batches = owner[order().epoch(0)[: 37 * 16]].reshape(37, 4, 4)
    assert np.median([len(np.unique(batch)) for batch in batches]) >= 4
    assert max(len(np.unique(lane)) for batch in batches for lane in batch) <= 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images in 24 shards of 5."""
    path = tmp_path_factory.mktemp("sharded")
    write_faces(path / "a.rec", 120, 4)
    write_shards(path / "a.rec", path / "shards", images_per_shard=5)
    return path


@pytest.mark.parametrize(
    ("world_size", "num_micro_batches", "num_workers"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (1, 1, 4)]
)
def test_each_process_fetches_only_its_share_of_the_shards(
    folder: Path, world_size: int, num_micro_batches: int, num_workers: int
) -> None:
    made = Shards(lanes=4).order(TarShards(folder / "shards"), seed=1, batch_size=8)
    num_loads, seen = [], []
    for rank in range(world_size):
        for worker in range(num_workers):
            faces = TarShards(folder / "shards", resident_shards=8)
            plan = BatchPlan(made, batch_size=8, num_micro_batches=num_micro_batches, rank=rank, world_size=world_size)
            for task in plan.tasks(0, plan.steps_per_epoch):
                ids = task.sample_ids[share(len(task.sample_ids), num_workers, worker)]
                faces.will_need(ids)
                for index in ids.tolist():
                    faces[index]
                    seen.append(index)
            num_loads.append(faces.num_loads)
    assert sorted(seen) == list(range(120))
    # The lanes end at ends of shards here, so that no shard is fetched twice by anybody.
    num_readers = world_size * num_workers
    assert num_loads == [24 // num_readers] * num_readers


def test_lanes_that_cut_shards_cost_a_shard_each(folder: Path) -> None:
    made = Shards(lanes=8).order(TarShards(folder / "shards"), seed=1, batch_size=8)
    ids, num_loads = made.epoch(0).reshape(-1, 8), 0
    for lane in range(8):
        faces = TarShards(folder / "shards", resident_shards=2)
        for index in ids[:, lane].tolist():
            faces[index]
        num_loads += faces.num_loads
        assert faces.num_loads <= 4
    assert num_loads <= 24 + 8


def test_the_order_is_the_same_from_the_loader(folder: Path) -> None:
    import torch

    from gkd.data import TrainLoader

    shards, rec = TarShards(folder / "shards"), RecordFile(folder / "a.rec")
    made = Shards(lanes=2).order(shards, seed=1, batch_size=8)
    plan = BatchPlan(made, batch_size=8)
    batches: list[list[Any]] = []
    for faces in (shards, rec):
        with TrainLoader(faces, plan, image_size=(16, 16), start_step=12, total_steps=18, num_workers=2) as loader:
            batches.append([(batch.sample_ids.clone(), batch.images.clone(), batch.labels.clone()) for batch in loader])
    for ours, theirs in zip(*batches, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


@dataclass
class Few:
    shard_ids: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return sum(len(ids) for ids in self.shard_ids)


def test_what_does_not_suit(folder: Path) -> None:
    rec, few = RecordFile(folder / "a.rec"), Few(shard_ids((3, 2)))
    with pytest.raises(ConfigError, match=r"sampling shards needs a data set of tar shards .*, got RecordFile; use "):
        Shards().order(rec, seed=0, batch_size=8)
    with pytest.raises(
        ConfigError, match=r"batch_size 100 is no multiple of 8 lanes; lanes that divide it: 1, 2, 4, 5, 10, 20, 25, 50"
    ):
        Shards().order(few, seed=0, batch_size=100)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="8 lanes are more than the 5 images"):
        Shards().order(few, seed=0, batch_size=8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lanes must be at least 1, got 0"):
        Shards(lanes=0)
