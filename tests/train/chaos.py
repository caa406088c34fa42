"""Kill a two-rank run at random moments, again and again, and compare what comes out with a run left in peace.

    scripts/chaos.sh [--kills 100] [--seed N] [--ranks 2] [--launcher forked|torchrun] [--report FILE]
                     [--head softmax|sharded|partial_fc]

The run is killed, started again with the same command, and so on until it has finished; then a new round begins. Each
start must continue from the newest whole checkpoint that the kill left; each finished run must equal the undisturbed
one in every bit of its weights, its last checkpoint and its logged figures; and no process may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from tests.train import forked_launch
from tests.train.kills import Kill, children_of, draw_kill, living_in
from tests.train.run_state import differences, last_logged_step, newest_step
from tests.train.tiny_run import ROOT, config, finish, train, write_data

EPOCHS = 8  # of 5 steps each
LIMIT_SECONDS = 180.0  # for one start, and for everything to end after a kill


@dataclass(frozen=True)
class Strike:
    """One kill that took place, and what it met."""

    round: int
    start: int
    seconds: float
    moment: str
    signals: str
    target: str
    step: int
    is_saving: bool
    newest_whole: int


@dataclass
class Report:
    """All of it: `problems` is empty where the run could not be lost."""

    seed: int
    num_ranks: int
    launcher: str
    torch_version: str = torch.__version__
    strikes: list[Strike] = field(default_factory=list)
    num_rounds: int = 0
    num_starts: int = 0
    num_resumed: int = 0
    problems: list[str] = field(default_factory=list)


class Chaos:
    """The kills, restarts and comparisons of one seed."""

    def __init__(
        self, folder: Path, *, num_kills: int, seed: int, num_ranks: int, launcher: str, head: str = "softmax"
    ) -> None:
        self.folder = folder
        self.num_kills = num_kills
        self.rng = random.Random(seed)
        self.report = Report(seed, num_ranks, launcher)
        self.sessions: set[int] = set()
        write_data(folder)
        self.config = config(
            folder,
            # bf16 off; batch norm live; batches of 9 so that the ranks' shares differ.
            train={"epochs": EPOCHS, "batch_size": 9, "log_every": 1, "save_every": 3, "precision": "fp32"},
            data={"workers": 1},
            evaluation={"every": 4},
            **self._head(head),
        )

    def _head(self, head: str) -> dict[str, object]:
        """Settings of the run's head; one that is split over the ranks comes with a teacher and Grouped KD."""
        if head == "softmax":
            return {}
        taught = config(self.folder, train={"epochs": 2}, run={"folder": str(self.folder / "teacher")})
        finish(train(taught))
        return {
            "head": {"name": head},
            "teacher": {
                "run": str(self.folder / "teacher"),
                "check_pairs": str(self.folder / "pairs.bin"),
                "min_accuracy": 0.2,
                "min_train_rank1": 0.05,
            },
            "distill": [{"loss": {"name": "gkd", "grouping": {"name": "cumulative_mass"}}, "warmup_epochs": 2}],
        }

    def run(self) -> Report:
        """Do it all; ends whatever is left running, also on failure."""
        try:
            self._undisturbed()
            while len(self.report.strikes) < self.num_kills and not self.report.problems:
                self._round()
            self._require_nothing_left()
        finally:
            for process_id in living_in(self.sessions):
                with suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
        return self.report

    def _undisturbed(self) -> None:
        log = self.folder / "undisturbed.log"
        code = self._wait(self._start(self.folder / "undisturbed", log)[0])
        if code != 0:
            raise SystemExit(f"the undisturbed run ended with {code}:\n{log.read_text()}")

    def _round(self) -> None:
        """One run, killed and started until it has finished."""
        self.report.num_rounds += 1
        run = self.folder / f"round_{self.report.num_rounds:03d}"
        start, is_finished = 0, False
        while not is_finished and not self.report.problems:
            start += 1
            is_finished = self._one_start(run, start)
        if is_finished:
            found = differences(self.folder / "undisturbed", run, self.folder / "tensors.pt")
            if found:
                self._problem(f"round {self.report.num_rounds} differs from the undisturbed run in {found}")
            else:
                print(f"round {self.report.num_rounds}: finished after {start} starts, equal in every bit", flush=True)

    def _one_start(self, run: Path, start: int) -> bool:
        """Start the run, kill it where a kill is left to do; returns whether it finished."""
        log = run.with_name(f"{run.name}_{start:03d}.log")
        expected = newest_step(run)
        kill = draw_kill(self.rng, self.report.num_ranks) if len(self.report.strikes) < self.num_kills else None
        launcher, ranks = self._start(run, log)
        if kill is not None:
            self._wait_and_strike(run, start, kill, launcher, ranks)
        code = self._wait(launcher)
        self._require_ended(set(ranks), log)
        self._check_resumed(log, expected)
        if newest_step(run) < expected:
            self._problem(f"{log}: the checkpoint of step {expected} was lost")
        if kill is None and code != 0:
            self._problem(f"{log}: ended with {code} though nobody killed it:\n{log.read_text()[-3000:]}")
        return code == 0

    def _start(self, run: Path, log: Path) -> tuple[int, list[int]]:
        """Start the command; returns the launcher and, once they are there, its ranks."""
        arguments = [str(self.config), f"run.folder={run}"]
        num_ranks = self.report.num_ranks
        self.report.num_starts += 1
        starter = forked_launch.start if self.report.launcher == "forked" else start_torchrun
        launcher = starter(arguments, num_ranks, log)
        deadline = time.monotonic() + LIMIT_SECONDS
        ranks: list[int] = []
        while len(ranks) < num_ranks and time.monotonic() < deadline:
            ranks = children_of(launcher)
        self.sessions |= {launcher, *ranks}  # each leads a session of its own, with its loading processes
        return launcher, ranks

    def _wait_and_strike(self, run: Path, start: int, kill: Kill, launcher: int, ranks: list[int]) -> None:
        started = time.monotonic()
        if not _await_moment(run, kill, launcher):
            return  # it finished first
        time.sleep(kill.delay_seconds)
        step, is_saving, newest = last_logged_step(run), _is_saving(run), newest_step(run)
        seconds = time.monotonic() - started
        kill.strike(launcher, ranks)
        strike = Strike(
            round=self.report.num_rounds,
            start=start,
            seconds=round(seconds, 3),
            moment=kill.moment,
            signals=kill.signals,
            target=kill.whom(),
            step=step,
            is_saving=is_saving,
            newest_whole=newest,
        )
        self.report.strikes.append(strike)
        print(
            f"kill {len(self.report.strikes):3d}  round {strike.round} start {start}  {seconds:6.3f} s  "
            f"{kill.signals} to {kill.whom()}  at step {step}, newest whole checkpoint {newest}"
            f"{', a save under way' if is_saving else ''}",
            flush=True,
        )

    def _wait(self, launcher: int) -> int:
        """The launcher's exit code, negative for a signal; one that hangs is ended and told of."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            process_id, status = os.waitpid(launcher, os.WNOHANG)
            if process_id:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self._problem(f"the launcher had not ended {LIMIT_SECONDS:g} seconds later")
        os.kill(launcher, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])

    def _require_ended(self, ranks: set[int], log: Path) -> None:
        """The ranks themselves must be gone with the launcher, or soon after where it was killed."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while ranks & set(living_in(ranks)):
            if time.monotonic() > deadline:
                self._problem(f"{log}: ranks {ranks & set(living_in(ranks))} outlived their launcher")
                return
            time.sleep(0.005)

    def _check_resumed(self, log: Path, expected: int) -> None:
        """A start that got as far as its first step must have said from where."""
        text = log.read_text() if log.exists() else ""
        matched = re.search(r"starting at step (\d+)", text)
        if matched is None:
            if "error:" in text:
                self._problem(f"{log}: refused to start:\n{text[-3000:]}")
            return
        self.report.num_resumed += expected > 0
        if int(matched[1]) != expected:
            self._problem(f"{log}: started at step {matched[1]}, not at the newest whole checkpoint's {expected}")

    def _require_nothing_left(self) -> None:
        deadline = time.monotonic() + 20  # a loading process notices within five seconds that its rank is gone
        while living_in(self.sessions) and time.monotonic() < deadline:
            time.sleep(0.1)
        left = living_in(self.sessions)
        if left:
            self._problem(f"processes {left} are left")

    def _problem(self, text: str) -> None:
        self.report.problems.append(text)
        print(f"PROBLEM: {text}", flush=True)


def chaos(
    folder: Path, *, num_kills: int, seed: int, num_ranks: int = 2, launcher: str = "forked", head: str = "softmax"
) -> Report:
    """Train, kill `num_kills` times, compare; see the head of this file."""
    return Chaos(folder, num_kills=num_kills, seed=seed, num_ranks=num_ranks, launcher=launcher, head=head).run()


def start_torchrun(arguments: list[str], num_ranks: int, log: Path) -> int:
    """Start the command under torchrun in a session of its own; returns its process id."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, str(ROOT / "tools" / "train.py"), *arguments],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    process.returncode = 0  # waited for by its id
    return process.pid


def _await_moment(run: Path, kill: Kill, launcher: int) -> bool:
    """Until what the kill waits for has happened `kill.count` times; False where the run ended before."""
    first_step, before, num_seen, was_saving = last_logged_step(run), _steps(run), 0, False
    while kill.moment != "starting":
        if kill.moment == "step":
            num_seen = last_logged_step(run) - first_step
        elif kill.moment == "saved":
            num_seen = len(_steps(run) - before)
            before &= _steps(run)
        else:
            is_saving = _is_saving(run)
            num_seen += is_saving and not was_saving
            was_saving = is_saving
        if num_seen >= kill.count:
            return True
        if os.waitid(os.P_PID, launcher, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.001)
    return True


def _names(run: Path) -> list[str]:
    folder = run / "checkpoints"
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _is_saving(run: Path) -> bool:
    return any(name.startswith(".writing-") for name in _names(run))


def _steps(run: Path) -> set[str]:
    return {name for name in _names(run) if name.startswith("step_")}


def verdict(report: Report) -> str:
    """One line: what was done and how it ended."""
    saving = sum(strike.is_saving for strike in report.strikes)
    ended = "equal in every bit, none lost" if not report.problems else f"{len(report.problems)} PROBLEM(S)"
    return (
        f"seed {report.seed}: {len(report.strikes)} kills ({saving} during a save), {report.num_starts} starts "
        f"({report.num_resumed} resumed), {report.num_rounds} runs finished on {report.num_ranks} ranks: {ended}"
    )


def main() -> int:
    """Run from the command line; returns 0 where nothing was lost."""
    parser = argparse.ArgumentParser(prog="scripts/chaos.sh", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how many kills (100)")
    parser.add_argument("--seed", type=int, default=None, help="repeats a series; drawn and printed where left out")
    parser.add_argument("--ranks", type=int, default=2, help="processes of the run (2)")
    parser.add_argument("--launcher", choices=("forked", "torchrun"), default="forked", help="torchrun is slower")
    parser.add_argument(
        "--head",
        choices=("softmax", "sharded", "partial_fc"),
        default="softmax",
        help="the others come with Grouped KD",
    )
    parser.add_argument("--report", type=Path, default=None, help="write everything to this file as JSON")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**31)
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="gkd-chaos-"))
    report = chaos(
        folder,
        num_kills=arguments.kills,
        seed=seed,
        num_ranks=arguments.ranks,
        launcher=arguments.launcher,
        head=arguments.head,
    )
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(asdict(report), indent=2) + "\n")
    print(verdict(report))
    if report.problems:
        print(f"the runs and their logs are in {folder}")
        return 1
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
