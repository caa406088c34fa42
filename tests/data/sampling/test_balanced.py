"""Balanced sampling: m identities x k images, every image at most once an epoch."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.core.errors import ConfigError
from gkd.data.batches import BatchPlan
from gkd.data.joined import JoinedFaces
from gkd.data.sampling import Balanced
from gkd.data.sampling import groups as groups_module
from gkd.data.sampling.groups import GroupCutter
from gkd.data.sampling.order import generator
from tests.data.sampling.labelled import Labelled, many, uneven


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_identities=st.integers(1, 30),
    most=st.integers(1, 15),
    size=st.integers(1, 5),
    data=st.data(),
)
def test_an_epoch(seed: int, num_identities: int, most: int, size: int, data: st.DataObject) -> None:
    faces = uneven(seed, num_identities, most)
    counts = Counter(faces.labels.tolist())
    num_groups = {label: count // size for label, count in counts.items()}
    total = sum(num_groups.values())
    if not total:
        with pytest.raises(ConfigError, match="gives 0"):
            Balanced(images_per_identity=size).order(faces, seed=seed, batch_size=size)
        return
    batch_size = size * data.draw(st.integers(1, total))
    order = Balanced(images_per_identity=size).order(faces, seed=seed, batch_size=batch_size)
    assert (order.images_per_epoch, order.group_size) == (total * size, size)
    ids = order.epoch(data.draw(st.integers(0, 5)))
    assert (ids.dtype, ids.shape) == (np.dtype(np.int64), (total * size,))
    assert len(set(ids.tolist())) == len(ids)
    owners = faces.labels[ids].reshape(-1, size)
    assert (owners == owners[:, :1]).all()
    assert Counter(owners[:, 0].tolist()) == {label: count for label, count in num_groups.items() if count}
    num_batches = len(ids) // batch_size
    if max(num_groups.values()) <= num_batches:
        for batch in owners[: num_batches * batch_size // size, 0].reshape(num_batches, -1):
            assert len(set(batch.tolist())) == len(batch)


def test_it_is_a_function_of_the_seed_and_the_epoch() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return Balanced().order(uneven(1, 30, 20), seed=seed, batch_size=32).epoch(number).tolist()

    assert epoch(1, 2) == epoch(1, 2)
    assert epoch(1, 2) != epoch(1, 3)
    assert epoch(1, 2) != epoch(2, 2)


def test_others_sit_out_in_the_next_epoch() -> None:
    faces = many(1, 7)
    order = Balanced(images_per_identity=4).order(faces, seed=1, batch_size=4)
    taken = [tuple(sorted(order.epoch(epoch).tolist())) for epoch in range(700)]
    often = Counter(image for ids in taken for image in ids)
    assert all(330 < often[image] < 470 for image in range(7))
    assert len(set(taken)) == 35


def test_every_pair_of_an_identity_is_drawn_alike() -> None:
    order = Balanced(images_per_identity=2).order(many(2, 4), seed=1, batch_size=4)
    pairs = Counter(tuple(sorted(pair)) for epoch in range(600) for pair in order.epoch(epoch).reshape(-1, 2).tolist())
    assert len(pairs) == 12
    assert all(140 < count < 260 for count in pairs.values())


def test_chunks_of_identities_cut_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "_IMAGES_AT_ONCE", 16)
    faces = uneven(5, 40, 30)
    cutter = GroupCutter(faces.labels, [range(len(faces))], 3)
    groups = cutter.cut(generator(1, 0))
    assert (faces.labels[groups] == cutter.owners[:, None]).all()
    assert len(np.unique(groups)) == groups.size == sum(count // 3 * 3 for count in np.bincount(faces.labels))
    assert cutter.num_images == sum(count for count in np.bincount(faces.labels) if count >= 3)


def test_only_the_given_ranges_are_cut() -> None:
    faces = uneven(5, 6, 30)
    ranges = [range(5, 20), range(31, 50)]
    groups = GroupCutter(faces.labels, ranges, 2).cut(generator(1, 0))
    assert len(groups) > 10
    assert all(any(image in ids for ids in ranges) for image in groups.ravel())


def test_small_identities_are_told_loudly(caplog: pytest.LogCaptureFixture) -> None:
    faces = Labelled([0] * 8 + [1] * 3 + [2] * 9 + [4] * 2)
    order = Balanced(images_per_identity=4).order(faces, seed=1, batch_size=8)
    text = "3 of 5 identities and 5 of 22 images never take part, as an identity needs 4 images"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert text in caplog.text
    assert order.describe() == (
        "balanced sampling: batches of 2 identities x 4 images; 4 groups (16 images) an epoch; "
        f"1 images sit out a pass in turn, as n mod 4 of an identity's are left over; {text}"
    )
    assert set(faces.labels[order.epoch(0)].tolist()) == {0, 2}


def test_unavoidable_doubles_are_told(caplog: pytest.LogCaptureFixture) -> None:
    order = Balanced(images_per_identity=4).order(many(8, 40), seed=1, batch_size=64)
    assert "about 40 of 80 groups share a batch with another of their identity" in caplog.text
    owners = many(8, 40).labels[order.epoch(0)].reshape(5, 16, 4)[:, :, 0]
    assert sum(16 - len(set(batch.tolist())) for batch in owners) == 40


def test_no_warning_where_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    Balanced(images_per_identity=4).order(many(16, 40), seed=1, batch_size=64)
    assert not caplog.records


@pytest.mark.parametrize(
    ("size", "batch_size", "message"),
    [
        (4, 130, "images_per_identity 4 does not divide batch_size 130; 2, 5, 10, 13, 26 would, or .* 128 or 132"),
        (8, 6, "images_per_identity 8 does not divide batch_size 6; 2, 3, 6 would, or take batch_size 8$"),
        (4, 88, "a batch of 88 takes 22 groups of 4 images of one identity, but the data gives 20; make"),
    ],
)
def test_batch_sizes_that_do_not_fit(size: int, batch_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Balanced(images_per_identity=size).order(many(10, 8), seed=1, batch_size=batch_size)


def test_groups_of_none() -> None:
    with pytest.raises(ConfigError, match="images_per_identity must be at least 1, got 0"):
        Balanced(images_per_identity=0)


def test_weights_take_groups() -> None:
    first, second = uneven(1, 20, 12), uneven(2, 20, 12)
    joined = JoinedFaces([first, second], weights=[2, 0.5], identities="separate")
    order = Balanced(images_per_identity=2).order(joined, seed=1, batch_size=8)
    num_groups = [sum(count // 2 for count in np.bincount(faces.labels)) for faces in (first, second)]
    assert order.images_per_epoch == 2 * (2 * num_groups[0] + (num_groups[1] + 1) // 2)
    epochs = [order.epoch(epoch) for epoch in range(4)]
    assert {len(ids) for ids in epochs} == {order.images_per_epoch}
    for ids in epochs:
        counts = Counter(ids.tolist())
        assert max(counts[image] for image in range(len(first))) == 2
        groups = ids.reshape(-1, 2)
        assert (joined.labels[groups[:, 0]] == joined.labels[groups[:, 1]]).all()
        assert (groups[:, 0] != groups[:, 1]).all()
    of_second = [set(ids[ids >= len(first)].tolist()) for ids in epochs]
    assert all(not first_half & second_half for first_half, second_half in (of_second[:2], of_second[2:])) or (
        num_groups[1] % 2
    )
    assert f"of the {num_groups[1]:,} of weight 0.5" in order.describe()


def test_batches_of_fractions_hold_no_identity_twice() -> None:
    joined = JoinedFaces([uneven(1, 60, 12), uneven(2, 90, 12)], weights=[1.5, 0.3], identities="separate")
    order = Balanced(images_per_identity=2).order(joined, seed=1, batch_size=16)
    for epoch in range(4):
        owners = joined.labels[order.epoch(epoch)][: order.images_per_epoch // 16 * 16].reshape(-1, 8, 2)[:, :, 0]
        assert all(len(set(batch)) == 8 for batch in owners.tolist())


def test_each_epoch_has_an_order_of_its_own() -> None:
    faces = many(50, 4)
    order = Balanced(images_per_identity=4).order(faces, seed=1, batch_size=8)
    first, second = (faces.labels[order.epoch(epoch)[::4]].tolist() for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))


def test_joined_by_name_an_identity_is_one_over_sets_of_one_weight() -> None:
    first = Labelled([0, 0, 1, 1], identity_names=("ann", "bob"))
    second = Labelled([0, 0, 1, 1], identity_names=("bob", "cid"))
    joined = JoinedFaces([first, second], weights=[1, 1], identities="by_name")
    order = Balanced(images_per_identity=4).order(joined, seed=1, batch_size=4)
    assert sorted(order.epoch(0).tolist()) == [2, 3, 4, 5]


def test_one_joined_set_of_weight_1_is_that_set() -> None:
    faces = uneven(1, 20, 12)
    joined = JoinedFaces([faces], weights=[1], identities="separate")
    orders = [Balanced(images_per_identity=3).order(data, seed=1, batch_size=9) for data in (faces, joined)]
    assert orders[0].epoch(3).tolist() == orders[1].epoch(3).tolist()
    assert orders[0].describe() == orders[1].describe()


def test_a_weight_of_no_group_is_told(caplog: pytest.LogCaptureFixture) -> None:
    joined = JoinedFaces([many(10, 8), many(1, 8)], weights=[1, 0.2], identities="separate")
    order = Balanced().order(joined, seed=1, batch_size=8)
    assert "the data of weight 0.2 gives no group at all" in caplog.text
    assert set(order.epoch(0).tolist()) == set(range(80))


def test_a_larger_set() -> None:
    faces = uneven(9, 3000, 40)
    order = Balanced().order(faces, seed=1, batch_size=256)
    plan = BatchPlan(order, batch_size=256, world_size=3, rank=1)
    for task in plan.tasks(0, plan.steps_per_epoch):
        owners = faces.labels[task.sample_ids].reshape(-1, 4)
        assert len(set(owners[:, 0].tolist())) == len(owners)
