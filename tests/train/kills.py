"""Kills drawn at random for `tests.train.chaos`: when, with which signal, and whom."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Moment = Literal["starting", "step", "saving", "saved"]
# What a kill waits for, and its share of all kills. Saves get more than their share of the time.
MOMENTS: dict[Moment, float] = {"starting": 0.1, "step": 0.3, "saving": 0.4, "saved": 0.2}
MAX_COUNT: dict[Moment, int] = {"starting": 1, "step": 8, "saving": 3, "saved": 3}
MAX_DELAY_SECONDS: dict[Moment, float] = {"starting": 1.5, "step": 0.03, "saving": 0.12, "saved": 0.03}
# SIGTERM lets the run save; then SIGKILL as clusters send it, with or without the time to do so.
SIGNALS = {"SIGKILL": 0.6, "SIGTERM": 0.2, "SIGTERM, SIGKILL": 0.2}
TARGETS = {"one rank": 0.4, "all ranks": 0.2, "launcher and ranks": 0.4}
MAX_GRACE_SECONDS = 0.3


@dataclass(frozen=True)
class Kill:
    """One kill: `count` events after a start and a delay, these signals go to that target."""

    moment: Moment
    count: int
    delay_seconds: float
    signals: str
    grace_seconds: float
    target: str
    rank: int

    def strike(self, launcher: int, ranks: list[int]) -> None:
        """Send the signals; those that are gone already are passed over."""
        chosen = {
            "one rank": ranks[self.rank : self.rank + 1],
            "all ranks": ranks,
            "launcher and ranks": [launcher, *ranks],
        }[self.target]
        for number, name in enumerate(self.signals.split(", ")):
            if number:
                time.sleep(self.grace_seconds)
            for process_id in chosen:
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.Signals[name])

    def whom(self) -> str:
        """The target in words."""
        return f"rank {self.rank}" if self.target == "one rank" else self.target


def draw_kill(rng: random.Random, num_ranks: int) -> Kill:
    """A kill at random, by the shares above."""
    moment = _draw(rng, MOMENTS)
    return Kill(
        moment=moment,
        count=rng.randint(1, MAX_COUNT[moment]),
        delay_seconds=rng.uniform(0, MAX_DELAY_SECONDS[moment]),
        signals=_draw(rng, SIGNALS),
        grace_seconds=rng.uniform(0, MAX_GRACE_SECONDS),
        target=_draw(rng, TARGETS),
        rank=rng.randrange(num_ranks),
    )


def _draw(rng: random.Random, shares):
    return rng.choices(list(shares), list(shares.values()))[0]


def children_of(process_id: int) -> list[int]:
    """The processes that this one has started and not yet waited for, oldest first."""
    return sorted(pid for pid, (_, parent, _) in _processes().items() if parent == process_id)


def living_in(sessions: set[int]) -> list[int]:
    """The processes of these sessions that are still running; those that only wait to be reaped do not count."""
    return sorted(pid for pid, (state, _, session) in _processes().items() if session in sessions and state != "Z")


def _processes() -> dict[int, tuple[str, int, int]]:
    """State, parent and session of every process, from /proc."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything, come state, parent, group and session.
            state, parent, _, session = path.read_text().rpartition(")")[2].split()[:4]
            found[int(path.parent.name)] = (state, int(parent), int(session))
    return found
