"""The batches of a run: exact over ranks, micro-batches and points to resume at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.core import seed as randomness
from gkd.core.errors import ConfigError
from gkd.data.batches import BatchPlan, Task, share
from gkd.data.joined import JoinedFaces
from gkd.data.sampling import SAMPLINGS, Balanced, Order, Uniform
from gkd.data.sampling.uniform import UniformOrder
from tests.data.sampling.labelled import Labelled, many, uneven

JOINED = JoinedFaces([many(5, 9), uneven(1, 8, 9)], weights=[0.7, 2.0], identities="separate")
ORDERS = {
    "uniform": Uniform().order(many(5, 10), seed=3, batch_size=12),
    "uniform joined": Uniform().order(JOINED, seed=3, batch_size=12),
    "balanced by 1": Balanced(images_per_identity=1).order(many(13, 4), seed=3, batch_size=12),
    "balanced by 2": Balanced(images_per_identity=2).order(uneven(2, 12, 9), seed=3, batch_size=12),
    "balanced joined": Balanced(images_per_identity=2).order(JOINED, seed=3, batch_size=12),
}


def _expected(order: Order, batch_size: int, num_steps: int) -> list[list[int]]:
    """The global batches in the words of the contract."""
    per_epoch = order.images_per_epoch // batch_size
    batches = []
    for step in range(num_steps):
        epoch, number = divmod(step, per_epoch)
        batches.append(order.epoch(epoch)[number * batch_size : (number + 1) * batch_size].tolist())
    return batches


def _tasks(order: Order, start: int, stop: int, world_size: int = 1, **settings: int) -> list[list[Task]]:
    """Each rank's tasks."""
    return [
        list(BatchPlan(order, world_size=world_size, rank=rank, **settings).tasks(start, stop))  # type: ignore[arg-type]
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_all_parts_together_are_the_batch(name: str, world_size: int, num_micro_batches: int) -> None:
    order = ORDERS[name]
    num_steps = 3 * (order.images_per_epoch // 12) + 1
    expected = _expected(order, 12, num_steps)
    for start in (0, 1, num_steps // 2, num_steps - 1, num_steps):
        ranks = _tasks(order, start, num_steps, world_size, batch_size=12, num_micro_batches=num_micro_batches)
        batches: dict[int, list[int]] = {}
        for together in zip(*ranks, strict=True):
            assert len({(task.step, task.epoch, task.micro_batch) for task in together}) == 1
            for task in together:
                assert task.sample_ids.dtype == np.int64
                assert task.epoch == task.step // (order.images_per_epoch // 12)
                batches.setdefault(task.step, []).extend(task.sample_ids.tolist())
        assert batches == dict(enumerate(expected[start:], start))
        assert [task.micro_batch for task in ranks[0]] == list(range(num_micro_batches)) * (num_steps - start)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_groups_stay_together_and_shares_are_even(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 4))
    world_size, num_micro_batches = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    num_groups = data.draw(st.integers(world_size * num_micro_batches, 20))
    faces = many(num_groups, size)
    order = Balanced(images_per_identity=size).order(faces, seed=0, batch_size=num_groups * size)
    plan = {"batch_size": num_groups * size, "num_micro_batches": num_micro_batches}
    tasks = [task for rank in _tasks(order, 0, 2, world_size, **plan) for task in rank]
    for task in tasks:
        owners = faces.labels[task.sample_ids].reshape(-1, size)
        assert len(owners)
        assert (owners == owners[:, :1]).all()
    for micro_batch in range(num_micro_batches):
        sizes = [len(task.sample_ids) for task in tasks if task.micro_batch == micro_batch]
        assert max(sizes) - min(sizes) in (0, size)


def test_three_epochs_of_uniform_take_each_image_once_each() -> None:
    order = Uniform().order(many(6, 10), seed=7, batch_size=15)
    ids = [task.sample_ids for rank in _tasks(order, 0, 12, 3, batch_size=15) for task in rank]
    epochs = [task.epoch for rank in _tasks(order, 0, 12, 3, batch_size=15) for task in rank]
    for epoch in range(3):
        taken = np.concatenate([part for part, of in zip(ids, epochs, strict=True) if of == epoch])
        assert sorted(taken.tolist()) == list(range(60))


def test_the_order_of_a_run_stays_what_it_was() -> None:
    plan = BatchPlan(Uniform().order(many(1, 23), seed=3, batch_size=7), batch_size=7)
    for task in plan.tasks(0, 8):
        first = task.step % 3 * 7
        expected = randomness.permutation(23, 3, task.step // 3)[first : first + 7]
        assert task.sample_ids.tolist() == expected.tolist()
    assert plan.left_out(1).tolist() == randomness.permutation(23, 3, 1)[21:].tolist()


@pytest.mark.parametrize("name", ORDERS)
def test_batches_and_what_is_left_out_are_the_epoch(name: str) -> None:
    plan = BatchPlan(ORDERS[name], batch_size=12)
    for epoch in range(3):
        tasks = plan.tasks(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        ids = [*np.concatenate([task.sample_ids for task in tasks]), *plan.left_out(epoch)]
        assert len(plan.left_out(epoch)) < 12
        assert ids == ORDERS[name].epoch(epoch).tolist()


def test_large_ids_survive() -> None:
    class Far:
        images_per_epoch, group_size = 4, 1

        def epoch(self, epoch: int) -> Any:
            return np.array([1, 2**31 - 1, 2**31, 2**40 + epoch])

        def describe(self) -> str:
            return "far"

    ids = [task.sample_ids.tolist() for task in BatchPlan(Far(), batch_size=2).tasks(0, 4)]
    assert ids == [[1, 2**31 - 1], [2**31, 2**40], [1, 2**31 - 1], [2**31, 2**40 + 1]]


def test_a_task_keeps_its_ids_when_others_are_written_to() -> None:
    first, second = list(BatchPlan(ORDERS["uniform"], batch_size=12, num_micro_batches=2).tasks(0, 1))
    kept = second.sample_ids.copy()
    first.sample_ids[:] = -1
    assert second.sample_ids.tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("uniform", {"batch_size": 51}, "batch_size 51 is larger than the data set of 50 images"),
        ("uniform", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("uniform", {"num_micro_batches": 0}, "num_micro_batches must be at least 1, got 0"),
        ("uniform", {"world_size": 0}, "world_size must be at least 1, got 0"),
        ("uniform", {"rank": 2, "world_size": 2}, "rank 2 is not one of 2 processes"),
        (
            "uniform",
            {"num_micro_batches": 4, "world_size": 4},
            "leaves some of 4 processes without an image.* least 16",
        ),
        ("balanced by 2", {"batch_size": 11}, "batch_size 11 is no multiple of 2, the number of images"),
        (
            "balanced by 2",
            {"num_micro_batches": 4, "world_size": 2},
            "without a group of 2 images; make it at least 16",
        ),
    ],
)
def test_refusals(name: str, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BatchPlan(ORDERS[name], **({"batch_size": 12} | changes))  # type: ignore[arg-type]


def test_shares_cover_everything_in_order() -> None:
    for num_items in range(12):
        for num_parts in range(1, 6):
            parts = [list(range(num_items))[share(num_items, num_parts, part)] for part in range(num_parts)]
            assert [item for part in parts for item in part] == list(range(num_items))
            assert sorted(map(len, parts), reverse=True) == list(map(len, parts))
            assert len(parts[0]) - len(parts[-1]) <= 1


def test_every_sampling_of_the_table_makes_an_order_or_says_why_not() -> None:
    assert {"uniform", "balanced"} <= set(SAMPLINGS)
    for sampling in SAMPLINGS.values():
        try:
            order = sampling().order(Labelled([0] * 8 + [1] * 8), seed=1, batch_size=8)
        except ConfigError:
            continue
        ids = order.epoch(0)
        assert (ids.dtype, ids.shape) == (np.dtype(np.int64), (order.images_per_epoch,))
        assert "\n" not in order.describe()


def test_the_images_that_fill_no_batch_are_told_by_the_first_rank(caplog: pytest.LogCaptureFixture) -> None:
    for rank in (0, 1):
        plan = BatchPlan(UniformOrder(((range(23), 1.0),), 3), batch_size=8, rank=rank, world_size=2)
        with caplog.at_level("INFO"):
            list(plan.tasks(0, 4))
        told = [f"epoch {epoch} leaves out 7 images that fill no batch: sample ids " for epoch in (0, 1)]
        told = [text + ", ".join(map(str, plan.left_out(epoch))) for epoch, text in enumerate(told)]
        assert [record.message for record in caplog.records] == (told if rank == 0 else [])
        caplog.clear()
