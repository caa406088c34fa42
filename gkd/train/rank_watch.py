"""Which rank is the one that all others wait for.

A collective that times out says only that it did. Here every rank publishes, from a thread of its own, which step it is
in, so that the message can name the rank that hangs, has ended or was stopped, with its host and process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from gkd.core import distributed
from gkd.core.errors import ConfigError

logger = logging.getLogger(__name__)

_PREFIX = "gkd/rank_watch"
_JOIN_SECONDS = 2.0
_READ_SECONDS = 10.0
# A rank that has published nothing for so many intervals is silent.
_SILENT_INTERVALS = 3


@dataclass(frozen=True)
class RankEntry:
    """What a rank last said of itself; `time` is its host's clock, in seconds since 1970."""

    step: int
    doing: str
    time: float
    host: str
    process_id: int


class RankWatch:
    """While entered, publishes this rank's step to the store that the process group was formed with.

    The thread is a daemon and every wait is bounded: neither a store that is gone nor one that answers no more keeps
    the process from going on or ending. Without a process group nothing happens.

    Args:
        interval_seconds: time between two signs of life.

    Attributes:
        step: the step this rank is in; set by the loop.
        doing: what it does there, in a word or two: "training", "evaluation", "saving".

    Raises:
        ConfigError: an interval that is not above 0.
    """

    def __init__(self, interval_seconds: float = 5.0) -> None:
        if not interval_seconds > 0:
            raise ConfigError(f"interval_seconds must be above 0, got {interval_seconds}")
        self.interval_seconds = interval_seconds
        self.step = 0
        self.doing = "training"
        self._store = _own_connection() if distributed.world_size() > 1 else None
        self._rank = distributed.rank()
        self._num_ranks = distributed.world_size()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank-watch", daemon=True)

    def __enter__(self) -> RankWatch:
        if self._store is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, or leave it behind where the store does not answer."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)

    def explain(self, error: BaseException) -> str:
        """Why a collective failed, as far as the ranks' last signs of life tell; takes at most some ten seconds.

        Ages compare the clocks of the ranks' hosts.

        Args:
            error: what the collective raised.
        """
        what = f"waiting for the other ranks failed ({_first_line(error)})"
        if self._store is None:
            return what
        entries = self._read_all()
        if entries is None:
            return (
                f"{what}; the store that the ranks share does not answer either: the process that holds it (rank 0's "
                "launcher) has ended, is stopped or cannot be reached. End what is left and run the same command again"
            )
        findings = explain_entries(entries, self._rank, self._num_ranks, time.time(), self.interval_seconds)
        return (
            f"{what}; {findings}. End what is left and run the same command again: it goes on from the last checkpoint"
        )

    def _run(self) -> None:
        while True:
            try:
                self._publish()
            except Exception as error:  # the store is gone with the process that held it; the loop will hear of that
                logger.debug("rank watch: could not publish: %s", error)
            if self._ended.wait(self.interval_seconds):
                return

    def _publish(self) -> None:
        entry = RankEntry(self.step, self.doing, time.time(), socket.gethostname(), os.getpid())
        assert self._store is not None
        self._store.set(str(self._rank), json.dumps(asdict(entry)))

    def _read_all(self) -> dict[int, RankEntry] | None:
        """Every rank's entry that there is, or None where the store does not answer in time."""
        box: list[dict[int, RankEntry]] = []

        def read() -> None:
            with suppress(Exception):  # whatever is wrong with the store, the answer is that it gives none
                box.append(self._entries())

        reader = threading.Thread(target=read, name="rank-watch-reader", daemon=True)
        reader.start()
        reader.join(_READ_SECONDS)
        return box[0] if box else None

    def _entries(self) -> dict[int, RankEntry]:
        assert self._store is not None
        entries = {}
        for rank in range(self._num_ranks):
            if self._store.check([str(rank)]):  # `get` of a missing key would wait for it
                entries[rank] = RankEntry(**json.loads(self._store.get(str(rank))))
        return entries


def explain_entries(
    entries: Mapping[int, RankEntry], own_rank: int, num_ranks: int, now: float, interval_seconds: float
) -> str:
    """Which ranks are behind, silent, ended or missing, as one sentence without its full stop."""
    newest = max((entry.step for entry in entries.values()), default=0)
    host = entries[own_rank].host if own_rank in entries else ""
    findings = []
    for rank in range(num_ranks):
        if rank not in entries:
            findings.append(f"rank {rank} was never heard of")
            continue
        entry, age = entries[rank], max(0.0, now - entries[rank].time)
        fate = process_fate(entry.process_id) if entry.host == host and rank != own_rank else None
        is_silent = age > _SILENT_INTERVALS * interval_seconds and rank != own_rank
        if entry.step < newest or is_silent or fate is not None:
            findings.append(_finding(rank, entry, newest, age, fate))
    if findings:
        return "; ".join(findings)
    return (
        f"all {num_ranks} ranks were heard of a moment ago and are in step {newest} "
        f"({_doings(list(entries.values()))}): look at the network between them, or at what only some of them do there"
    )


def process_fate(process_id: int) -> str | None:
    """Whether a process of this host "has ended" or "is stopped by a signal"; None where it runs, or on no Linux."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(errors="replace")
    except OSError:
        return "has ended"
    state = text.rpartition(")")[2].split()[0]
    return {"T": "is stopped by a signal", "t": "is stopped by a debugger", "Z": "has ended", "X": "has ended"}.get(
        state
    )


def _finding(rank: int, entry: RankEntry, newest: int, age: float, fate: str | None) -> str:
    where = f"is still in step {entry.step}, the others in step {newest}"
    if entry.step == newest:
        where = f"is in step {entry.step} like the others"
    process = f"; its process {fate}" if fate is not None else ""
    return (
        f"rank {rank} (host {entry.host}, pid {entry.process_id}) {where} ({entry.doing}); it was last heard of "
        f"{age:.0f} s ago{process}"
    )


def _doings(entries: Sequence[RankEntry]) -> str:
    return ", ".join(sorted({entry.doing for entry in entries}))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _own_connection() -> Any:
    """The default group's store under a name of ours, over a connection of its own where torch can make one.

    One connection answers one caller at a time, and the group's may be in the middle of a long wait.
    """
    store = distributed_c10d._get_default_store()
    clone = getattr(store, "clone", None)
    return dist.PrefixStore(_PREFIX, clone() if clone is not None else store)  # type: ignore[attr-defined]
