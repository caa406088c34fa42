"""Work in several processes: order, errors, deaths, and what is left running."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import active_children

import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data.ordered_work import in_order


def run(work: Callable[[int], object], num_items: int, num_workers: int, chunk_size: int = 3) -> list[object]:
    with in_order(
        work, num_items, num_workers=num_workers, chunk_size=chunk_size, describe="file {}".format
    ) as results:
        return list(results)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 9])
@pytest.mark.parametrize("num_items", [0, 1, 3, 20])
def test_results_come_in_order(num_items: int, num_workers: int) -> None:
    def work(index: int) -> bytes:
        time.sleep(0.002 * (index % 3))
        return b"%d" % index * 1000

    assert run(work, num_items, num_workers) == [b"%d" % index * 1000 for index in range(num_items)]
    assert not active_children()


def test_it_is_done_elsewhere() -> None:
    pids = run(lambda _: os.getpid(), 12, 2)
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
    assert set(run(lambda _: os.getpid(), 12, 1)) == {os.getpid()}


@pytest.mark.parametrize("end", [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3)])
def test_a_death_is_told_with_its_item(end: Callable[[], None]) -> None:
    def work(index: int) -> int:
        if index == 10:
            end()
        return index

    with pytest.raises(DataError, match=r"file 10: the worker process .* (was killed by SIGKILL|ended with code 3); "):
        run(work, 30, 2)
    assert not active_children()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_arrive_after_the_results_before_them(num_workers: int) -> None:
    def work(index: int) -> int:
        if index == 7:
            raise DataError("seven")
        return index

    seen: list[int] = []
    with (
        in_order(work, 20, num_workers=num_workers, chunk_size=3, describe=str) as results,
        pytest.raises(DataError, match="seven"),
    ):
        seen.extend(results)
    assert seen == list(range(7))


def test_a_mistake_in_the_work_is_no_refusal() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process: .*ZeroDivisionError"):
        run(lambda index: 1 // (index - 4), 20, 2)


def test_leaving_early_ends_the_workers() -> None:
    with in_order(lambda index: index, 10**9, num_workers=2, chunk_size=10, describe=str) as results:
        assert next(results) == 0
    assert not active_children()


def test_workers_are_counted() -> None:
    with pytest.raises(ConfigError, match="the number of workers must be at least 1, got 0"):
        run(lambda index: index, 3, 0)
