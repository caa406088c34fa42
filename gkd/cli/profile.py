"""`tools/profile.py CONFIG [key=value ...]`: where the time of a training step goes, and what to turn."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from gkd.build_teacher import TeacherParts
from gkd.cli import run_tool
from gkd.cli.train import Run
from gkd.core import distributed
from gkd.core.config import load_config
from gkd.core.errors import ConfigError, GkdError
from gkd.core.files import atomic_write
from gkd.core.log import set_up_logging
from gkd.data.loader import TrainLoader
from gkd.profiling.advice import advise
from gkd.profiling.attribution import attribute
from gkd.profiling.measuring import ProfileDone, StepMeter, StepPlan
from gkd.profiling.profile import Profile, make_profile
from gkd.profiling.report import report
from gkd.profiling.setup import Setup, setup_of
from gkd.profiling.trace import read_trace
from gkd.schema import TrainRun
from gkd.train.run_folder import locked

logger = logging.getLogger(__name__)

PROFILE_FILE = Path("profile.json")
TRACE_FILE = Path("trace.json.gz")

EXAMPLE = """example:
  python tools/profile.py configs/quickstart/gkd.yaml --steps 30
  torchrun --nproc-per-node 8 tools/profile.py configs/distill/mobilefacenet_ms1mv2_gkd_from_iresnet100.yaml
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/profile.py",
        description="Train a few steps as tools/train.py would, in a folder of their own, and show where the time of a "
        "step goes, what bounds it and what to turn. Nothing is evaluated or saved; the run's folder stays as it is.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="a YAML file as tools/train.py takes it")
    add("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    add("--steps", type=int, default=StepPlan.steps, help="steps that are measured, twice (default %(default)s)")
    add("--warmup", type=int, default=StepPlan.warmup, help="steps before that (default %(default)s)")
    add("--out", type=Path, metavar="FOLDER", help="where the results go (default: run.folder with -profile behind)")
    arguments = parser.parse_intermixed_args(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's own messages, such as that there is no GPU
    return run_tool(lambda: _profile(arguments))


def _profile(arguments: argparse.Namespace) -> int:
    plan = StepPlan(warmup=arguments.warmup, steps=arguments.steps)
    config = load_config(arguments.config, TrainRun, arguments.overrides)
    folder: Path = arguments.out or config.run.folder.with_name(f"{config.run.folder.name}-profile")
    if folder.resolve() == config.run.folder.resolve():
        raise ConfigError(f"--out: {folder} is the run's own folder; choose another")
    if os.environ.get("RANK", "0") == "0":  # there is no process group yet
        _require_free(folder)
    config = _in_folder(config, folder)
    with distributed.process_group(config.train.timeout_minutes):
        set_up_logging(distributed.rank())
        with locked(folder):
            distributed.barrier()  # after this every rank knows that the folder exists and is ours
            return _profile_in(folder, config, plan)


def _profile_in(folder: Path, config: TrainRun, plan: StepPlan) -> int:
    if distributed.rank() == 0:
        _write(folder, {"is_complete": False})
    run = ProfiledRun(config, sys.argv, plan)
    code = run.measure()
    if run.meter is None or not run.meter.measured.profiled_seconds:
        logger.warning("stopped before all %d steps were measured: there is no profile", plan.total)
        return code
    own = make_profile(run.meter.measured, attribute(read_trace(run.meter.trace)))
    every: list[Profile] = distributed.gather_objects(own)
    if distributed.rank() == 0:
        _tell(folder, setup_of(config, run.device, run.dataset.num_identities), every)
    else:
        run.meter.trace.unlink()
    return 0


def _tell(folder: Path, setup: Setup, every: Sequence[Profile]) -> None:
    advice = advise(every[0].seconds, setup)
    values: dict[str, Any] = {
        "is_complete": True,
        "setup": dataclasses.asdict(setup),
        "advice": [dataclasses.asdict(one) for one in advice],
        "ranks": [one.to_json() for one in every],
    }
    _write(folder, values)
    sys.stdout.write(report(every, setup, advice))
    sys.stdout.write(
        f"written: {folder / PROFILE_FILE}, {folder / TRACE_FILE} (open the trace at https://ui.perfetto.dev or in "
        "chrome://tracing)\n"
    )


class ProfiledRun(Run):
    """A run that ends once its steps are measured: the same but for that, and that it checks and keeps nothing."""

    def __init__(self, config: TrainRun, command: Sequence[str], plan: StepPlan) -> None:
        super().__init__(config, command)
        self.plan = plan
        # The schedule still is that of the whole run.
        self.settings = dataclasses.replace(
            self.settings, total_steps=plan.total + 1, evaluate_every=None, save_every=None
        )
        self.meter: StepMeter | None = None

    def measure(self) -> int:
        """Train as long as it takes; returns 0, or 128 + the signal that stopped it."""
        try:
            return self.train()
        except ProfileDone:
            return 0

    def _loader(self, start_step: int) -> TrainLoader:
        loader = super()._loader(start_step)
        name = TRACE_FILE if distributed.rank() == 0 else Path(f".trace_{distributed.rank()}.json.gz")
        trace = self.folder / name
        self.meter = StepMeter(loader, self.plan, self.settings.micro_batches, self.device, trace)
        return cast(TrainLoader, self.meter)  # all that a run does with it

    def _check_teacher(self, teacher: TeacherParts) -> None:
        """Its figures change no time."""

    def _require_space(self) -> None:
        """No checkpoint is written."""

    def _save(self, step: int, score: float | None) -> None:
        """Keep nothing."""

    def _finish_saving(self, step: int) -> None:
        """There is nothing to wait for."""

    def _evaluate(self) -> tuple[dict[str, float], float | None]:
        return {}, None


def _in_folder(config: TrainRun, folder: Path) -> TrainRun:
    """The same settings for a run of its own, of which no server is told."""
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"folder": folder}),
            "log": config.log.model_copy(update={"wandb": None, "mlflow": None}),
            "train": config.train.model_copy(update={"resume": "auto"}),
        }
    )


def _require_free(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier profile.

    Raises:
        ConfigError: as above.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file; name a folder")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != ".lock")
    if names and PROFILE_FILE.name not in names:
        more = ", …" if len(names) > 3 else ""
        raise ConfigError(
            f"--out: {folder} holds other things ({', '.join(names[:3])}{more}); name a new or an empty folder, or one "
            "of an earlier profile"
        )


def _write(folder: Path, values: dict[str, Any]) -> None:
    try:
        with atomic_write(folder / PROFILE_FILE) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise GkdError(f"--out: cannot write in {folder}: {error.strerror}; name another folder") from error
