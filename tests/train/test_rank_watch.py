"""One rank hangs, is stopped or ends: the other names it, and waits for nothing on the way."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gkd.core.distributed import end_process
from gkd.core.errors import ConfigError
from gkd.train import rank_watch
from gkd.train.rank_watch import RankEntry, RankWatch, explain_entries, process_fate

INTERVAL_SECONDS = 0.2


def entry(step: int, age: float = 1.0, host: str = "h", process_id: int = 1, doing: str = "training") -> RankEntry:
    return RankEntry(step, doing, 1000.0 - age, host, process_id)


def explained(*entries: RankEntry | None, own_rank: int = 0) -> str:
    known = {rank: one for rank, one in enumerate(entries) if one is not None}
    return explain_entries(known, own_rank, len(entries), 1000.0, 5.0)


def test_the_rank_that_is_behind_is_named():
    assert explained(entry(58), entry(57, 612, "h2", 44, "evaluation"), entry(58)) == (
        "rank 1 (host h2, pid 44) is still in step 57, the others in step 58 (evaluation); it was last heard of "
        "612 s ago"
    )


def test_a_silent_rank_is_named_though_it_is_in_the_same_step():
    assert explained(entry(58), entry(58), entry(58, 15.1, "h2", 44)) == (
        "rank 2 (host h2, pid 44) is in step 58 like the others (training); it was last heard of 15 s ago"
    )
    assert "all 2 ranks were heard of" in explained(entry(58), entry(58, 14.9, "h2"))


def test_a_rank_behind_is_found_by_itself_too():
    assert explained(entry(57, 700), entry(58, host="h2"), own_rank=0).startswith("rank 0 (host h, pid 1) is still in")


def test_a_rank_never_heard_of_is_named():
    assert explained(entry(0), None) == "rank 1 was never heard of"


def test_ranks_that_are_all_well_point_to_the_network():
    text = explained(entry(58), entry(58, host="h2", doing="saving"))
    assert text.startswith("all 2 ranks were heard of a moment ago and are in step 58 (saving, training): look at")


def test_a_clock_that_runs_ahead_gives_no_negative_age():
    assert "last heard of 0 s ago" in explained(entry(58), entry(57, -30, "h2"))


def test_the_fate_of_a_process():
    assert process_fate(os.getpid()) is None
    child = mp.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    assert process_fate(child.pid) is None
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: process_fate(child.pid) == "is stopped by a signal")
    child.kill()
    wait_until(lambda: process_fate(child.pid) == "has ended")  # a zombie, then gone
    child.join()
    assert process_fate(child.pid) == "has ended"


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_a_group_nothing_runs():
    with RankWatch() as watch:
        watch.step = 3
        assert not watch._thread.is_alive()
        assert watch.explain(RuntimeError("broken\nat line 7")) == "waiting for the other ranks failed (broken)"


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="interval_seconds must be above 0, got 0"):
        RankWatch(0)


class Broken:
    """A store that fails, or never answers."""

    def __init__(self, answers: bool) -> None:
        self.answers = answers
        self.num_calls = 0

    def set(self, key, value):
        self.num_calls += 1
        if self.answers:
            raise RuntimeError("Connection reset by peer")
        time.sleep(3600)

    def check(self, keys):
        self.set("", "")


@pytest.mark.parametrize("answers", [True, False])
def test_a_store_that_is_gone_ends_and_blocks_nothing(monkeypatch, answers):
    store = Broken(answers)
    group = SimpleNamespace(world_size=lambda: 2, rank=lambda: 1)
    monkeypatch.setattr(rank_watch, "distributed", group)
    monkeypatch.setattr(rank_watch, "_own_connection", lambda: store)
    monkeypatch.setattr(rank_watch, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(rank_watch, "_JOIN_SECONDS", 0.2)
    with RankWatch(0.01) as watch:
        wait_until(lambda: store.num_calls >= (3 if answers else 1))  # one failure does not end the thread
        text = watch.explain(RuntimeError("timed out"))
    assert "(timed out); the store that the ranks share does not answer either" in text
    assert watch._thread.daemon


def one_rank(rank: int, folder: str, port: int, what: str) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=False, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    impatient = dist.new_group(timeout=timedelta(seconds=2))
    with RankWatch(INTERVAL_SECONDS) as watch:
        watch.step = 57
        dist.barrier()
        if rank == 1:
            time.sleep(3 * INTERVAL_SECONDS)  # step 57 is known
            hang(what)
        watch.step = 58
        with pytest.raises(RuntimeError) as caught:
            dist.all_reduce(torch.ones(1), group=impatient)
        Path(folder, "explained").write_text(watch.explain(caught.value))
    end_process(0)


def hang(what: str) -> None:
    if what == "ended":
        os._exit(1)
    if what == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "fate"),
    [("stopped", "its process is stopped by a signal"), ("asleep", None), ("ended", "its process has ended")],
)
def test_of_two_ranks_the_one_that_hangs_is_named(tmp_path, what, fate):
    # As torchrun does it: the store is held by a process that is no rank.
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
    context = mp.get_context("spawn")
    ranks = [context.Process(target=one_rank, args=(rank, str(tmp_path), store.port, what)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    ranks[0].join(120)
    ranks[1].kill()
    ranks[1].join()
    assert ranks[0].exitcode == 0
    text = (tmp_path / "explained").read_text()
    assert text.startswith("waiting for the other ranks failed (")
    assert f"pid {ranks[1].pid}) is still in step 57, the others in step 58 (training); it was last heard of" in text
    assert "rank 0" not in text
    if fate is None:
        assert "its process" not in text
    else:
        assert fate in text
    assert text.endswith("End what is left and run the same command again: it goes on from the last checkpoint")
