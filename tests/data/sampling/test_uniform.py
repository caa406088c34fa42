"""Uniform sampling, and what an epoch takes of weighted parts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.core import seed as randomness
from gkd.data.joined import JoinedFaces
from gkd.data.sampling import Uniform
from gkd.data.sampling.order import generator
from gkd.data.sampling.passes import num_taken, portions
from tests.data.sampling.labelled import many


@pytest.mark.parametrize("num_images", [1, 2, 1000, 70_001])
@pytest.mark.parametrize("seed", [0, 1024, 2**32 - 1])
def test_one_set_is_the_permutation_of_the_seed_and_the_epoch(num_images: int, seed: int) -> None:
    order = Uniform().order(many(1, num_images), seed=seed, batch_size=1)
    for epoch in (0, 5):
        assert np.array_equal(order.epoch(epoch), randomness.permutation(num_images, seed, epoch))


def test_one_joined_set_of_weight_1_is_that_set() -> None:
    faces = many(3, 7)
    alone = Uniform().order(faces, seed=5, batch_size=4)
    joined = Uniform().order(JoinedFaces([faces], weights=[1], identities="separate"), seed=5, batch_size=4)
    assert [joined.epoch(epoch).tolist() for epoch in range(3)] == [alone.epoch(epoch).tolist() for epoch in range(3)]
    assert joined.describe() == alone.describe() == "uniform sampling: 21 images an epoch"


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    data=st.data(),
    num_epochs=st.integers(1, 12),
)
def test_in_the_long_run_nothing_is_lost_or_doubled(sizes: list[int], data: st.DataObject, num_epochs: int) -> None:
    weights = [data.draw(st.floats(0.51 / size, 3.0)) for size in sizes]
    joined = JoinedFaces([many(1, size) for size in sizes], weights=weights, identities="separate")
    order = Uniform().order(joined, seed=1, batch_size=1)
    epochs = [order.epoch(epoch) for epoch in range(num_epochs)]
    assert {len(ids) for ids in epochs} == {order.images_per_epoch}
    counts = np.bincount(np.concatenate(epochs), minlength=len(joined))
    for ids, weight in joined.weighted_ranges:
        of_set = counts[ids.start : ids.stop]
        assert of_set.sum() == num_epochs * num_taken(len(ids), weight)
        assert of_set.max() - of_set.min() <= 1


def test_a_half_and_the_other_half() -> None:
    joined = JoinedFaces([many(2, 5), many(2, 8)], weights=[2, 0.5], identities="separate")
    order = Uniform().order(joined, seed=1, batch_size=4)
    assert order.images_per_epoch == 28
    halves = []
    for epoch in range(4):
        counts = Counter(order.epoch(epoch).tolist())
        assert [counts[image] for image in range(10)] == [2] * 10
        halves.append({image for image in counts if image >= 10})
    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(10, 26))
    assert all(len(half) == 8 for half in halves)
    assert halves[0] not in halves[2:]
    assert order.describe() == (
        "uniform sampling: 28 images an epoch: 20 of the 10 of set 1 (weight 2), 8 of the 16 of set 2 (weight 0.5)"
    )


def test_sets_are_mixed() -> None:
    joined = JoinedFaces([many(1, 500), many(1, 500)], weights=[1, 1], identities="separate")
    first_half = Uniform().order(joined, seed=1, batch_size=4).epoch(0)[:500]
    assert 180 < (first_half < 500).sum() < 320


@given(num_items=st.integers(1, 20), num_per_epoch=st.integers(0, 60), epoch=st.integers(0, 9))
def test_portions_are_the_endless_sequence(num_items: int, num_per_epoch: int, epoch: int) -> None:
    sequence = [(position // num_items, position % num_items) for position in range((epoch + 1) * num_per_epoch)]
    found = [
        (part.number, place)
        for part in portions(num_items, num_per_epoch, epoch)
        for place in range(part.start, part.stop)
    ]
    assert found == sequence[epoch * num_per_epoch :]


@pytest.mark.parametrize(("num_items", "weight", "expected"), [(10, 1, 10), (5, 0.5, 3), (7, 0.5, 4), (30, 0.1, 3)])
def test_rounding(num_items: int, weight: float, expected: int) -> None:
    assert num_taken(num_items, weight) == expected


def test_streams_differ() -> None:
    draws = {
        generator(seed, epoch, stream).integers(2**62)
        for seed in (0, 1, 2**32 - 1)
        for epoch in (0, 1)
        for stream in (0, 1, 2)
    }
    assert len(draws) == 18
