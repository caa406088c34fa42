"""Runs that change their number of ranks in the middle, for `tests.train.test_elastic`.

    python -m tests.train.elastic FOLDER 2,1,3,2 6,13,20 [key=value …]

trains FOLDER/run.yaml, with these overrides, into FOLDER/chain, on two ranks until step 6 is logged, on one until
step 13, and so on; the last number of ranks finishes it; `-` in place of the steps is none. In a process of its own,
for the ranks are forks of it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.train import forked_launch
from tests.train.run_state import last_logged_step

LIMIT_SECONDS = 120.0


def train_until(folder: Path, name: str, num_ranks: int, stop_at: int | None, overrides: Sequence[str] = ()) -> None:
    """Start or continue FOLDER/`name` on `num_ranks`, asked to stop once `stop_at` is logged; None finishes it."""
    run, log = folder / name, folder / f"{name}.log"
    launcher = forked_launch.start([str(folder / "run.yaml"), f"run.folder={run}", *overrides], num_ranks, log)
    deadline = time.monotonic() + LIMIT_SECONDS
    while stop_at is not None and last_logged_step(run) < stop_at:
        if time.monotonic() > deadline or os.waitid(os.P_PID, launcher, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise SystemExit(f"no step {stop_at} on {num_ranks} ranks:\n{log.read_text()}")
        time.sleep(0.001)
    if stop_at is not None:
        os.kill(launcher, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
    if code != (1 if stop_at else 0):
        raise SystemExit(f"ended with {code} on {num_ranks} ranks:\n{log.read_text()}")


def main() -> None:
    """Train the chain that the command line asks for."""
    folder, numbers, overrides = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[4:]
    stops = [] if sys.argv[3] == "-" else sys.argv[3].split(",")
    name = next((value.rpartition("/")[2] for value in overrides if value.startswith("run.folder=")), "chain")
    for num_ranks, stop_at in zip(numbers, [*stops, None], strict=True):
        train_until(folder, name, int(num_ranks), int(stop_at) if stop_at else None, overrides)


if __name__ == "__main__":
    main()
