"""Evaluation within a time: which sets are taken, what is told of the others, and two ranks that agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gkd.core.distributed import end_process
from gkd.core.errors import ConfigError, DataError
from gkd.evaluation import VerificationResult, verify_distances
from gkd.inference.evaluation_budget import Evaluated, evaluate_within
from tests.inference.test_embed import Pairs

RESULT = verify_distances(np.linspace(0, 1, 20), np.arange(20) < 10)


def make_sets(**sizes: int) -> dict[str, Pairs]:
    return {name: Pairs([b""] * size, np.ones(size // 2, dtype=bool)) for name, size in sizes.items()}


class Clock:
    """Time that passes only while a set is evaluated, by so many seconds an image."""

    def __init__(self, seconds_per_image: float) -> None:
        self.now = 1000.0
        self.seconds_per_image = seconds_per_image
        self.evaluated: list[str] = []

    def __call__(self) -> float:
        return self.now

    def evaluate(self, name: str, pair_set: Pairs) -> VerificationResult:
        self.now += self.seconds_per_image * len(pair_set.images)
        self.evaluated.append(name)
        return RESULT


def run(seconds: float | None, clock: Clock, **sizes: int) -> Evaluated:
    return evaluate_within(seconds, make_sets(**sizes), clock.evaluate, clock=clock)


def test_all_sets_are_evaluated_where_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    for seconds in (None, 6.0):
        clock = Clock(0.1)
        outcome = run(seconds, clock, a=20, b=30, c=10)
        assert list(outcome.results) == clock.evaluated == ["a", "b", "c"]
        assert outcome.left_out == ()
    assert caplog.records == []


def test_a_set_that_does_not_fit_is_named_and_a_smaller_one_follows(caplog: pytest.LogCaptureFixture) -> None:
    outcome = run(3.5, Clock(0.1), a=20, b=30, c=10)
    assert list(outcome.results) == ["a", "c"]
    assert outcome.left_out == ("b",)
    assert caplog.messages == [
        "b is not evaluated: it would take about 3 s, and 2 s are spent of the 3.5 s for all sets"
    ]


def test_the_first_set_is_always_evaluated() -> None:
    outcome = run(0.5, Clock(1.0), a=20, b=2)
    assert (list(outcome.results), outcome.left_out) == (["a"], ("b",))
    outcome = evaluate_within(1e-12, make_sets(a=2), lambda name, pair_set: RESULT)  # over before it begins
    assert list(outcome.results) == ["a"]


def test_the_speed_is_that_of_all_sets_so_far() -> None:
    clock = Clock(0.1)

    def evaluate(name: str, pair_set: Pairs) -> VerificationResult:
        result = clock.evaluate(name, pair_set)
        clock.seconds_per_image *= 10
        return result

    # 10 images in 1 s, then 10 in 10 s: 5.5 s for 10 more.
    for seconds, left_out in ((16.4, ("c",)), (16.6, ())):
        clock.seconds_per_image = 0.1
        outcome = evaluate_within(seconds, make_sets(a=10, b=10, c=10), evaluate, clock=clock)
        assert outcome.left_out == (left_out if seconds == 16.4 else ())


def test_no_sets_give_no_figures() -> None:
    assert evaluate_within(1.0, {}, Clock(1.0).evaluate) == Evaluated({}, ())


def test_a_failure_is_raised_as_it_is() -> None:
    def fail(name: str, pair_set: Pairs) -> VerificationResult:
        raise DataError(f"{name} is unfit")

    with pytest.raises(DataError, match=r"^a is unfit$"):
        evaluate_within(1.0, make_sets(a=2), fail)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_must_be_positive(seconds: float) -> None:
    with pytest.raises(ConfigError, match=f"must be above 0 seconds, got {seconds}"):
        evaluate_within(seconds, {}, Clock(1.0).evaluate)


def _evaluate_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    outcomes: list[Any] = []
    for speeds in ((0.1, 10.0), (10.0, 0.1)):  # alone, the ranks would decide differently
        outcome = run(3.5, Clock(speeds[rank]), a=20, b=10, c=2)
        outcomes.append((list(outcome.results), outcome.left_out))
    torch.save(outcomes, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


def test_the_first_rank_decides_for_all(tmp_path: Path) -> None:
    mp.spawn(_evaluate_on_rank, args=(str(tmp_path),), nprocs=2, join=True)
    for rank in range(2):
        outcomes = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert outcomes == [(["a", "b", "c"], ()), (["a"], ("b", "c"))]
