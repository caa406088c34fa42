"""`tools/quickstart.py`: drawn faces, a teacher, a control and a Grouped KD student, and one table to compare them.

It runs the same tools that a user would, one after the other, and prints each command. What is done already is not done
again: data that were drawn are kept, and a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gkd.build_teacher import STUDENT_FILE
from gkd.cli import run_tool
from gkd.core.errors import GkdError
from gkd.core.files import atomic_write
from gkd.core.log import set_up_logging
from gkd.data import PairSet
from gkd.evaluation import VerificationResult, format_table, plot_curves, plot_roc, plot_scores, roc_curve
from gkd.inference.embed import evaluate_pairs
from gkd.models import load_student
from gkd.models.cost import num_parameters
from gkd.train.metrics import read_metrics

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
RUNS = ("teacher", "control", "gkd")
TITLES = {"teacher": "teacher", "control": "control (no distillation)", "gkd": "Grouped KD student"}
FIRST_SEED = 1024
FACES = ("--size", "64", "--num-identities", "300", "--images-per-identity", "20")


@dataclass(frozen=True)
class Outcome:
    """One trained network on the test pairs."""

    run: str
    seed: int
    folder: Path
    result: VerificationResult
    num_parameters: int
    images_per_second: float


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools/quickstart.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[FIRST_SEED], help="training seeds; default %(default)s"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/quickstart"), help="where runs go; default %(default)s"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/synthetic"), help="where drawn faces go; default %(default)s"
    )
    arguments = parser.parse_args(argv)
    set_up_logging()
    return run_tool(lambda: _quickstart(arguments))


def _quickstart(arguments: argparse.Namespace) -> None:
    _tool("prepare.py", "synthetic", str(arguments.data), *FACES, "--workers", str(min(8, os.cpu_count() or 1)))
    for seed in arguments.seeds:
        for run in RUNS:
            _tool("train.py", str(_config_of(run)), *_overrides(arguments, run, seed))
    pairs = PairSet.load(arguments.data / "test.bin")
    outcomes = [_outcome(arguments, run, seed, pairs) for seed in arguments.seeds for run in RUNS]
    _report(arguments, outcomes)


def _config_of(run: str) -> Path:
    return ROOT / "configs" / "quickstart" / f"{run}.yaml"


def _run_folder(arguments: argparse.Namespace, run: str, seed: int) -> Path:
    folder: Path = arguments.folder / f"{run}_seed{seed}"
    return folder


def _overrides(arguments: argparse.Namespace, run: str, seed: int) -> list[str]:
    """What differs from the config file: folders and the seed."""
    overrides = [
        f"run.folder={_run_folder(arguments, run, seed)}",
        f"run.seed={seed}",
        f"data.train.path={arguments.data / 'train.rec'}",
        f"evaluation.sets=[{arguments.data / 'validation.bin'}]",
    ]
    if run == "gkd":
        overrides.append(f"teacher.run={_run_folder(arguments, 'teacher', seed)}")
        overrides.append(f"teacher.check_pairs={arguments.data / 'validation.bin'}")
    return overrides


def _tool(name: str, *arguments: str) -> None:
    """Run one of the tools as a user would; its output goes straight through."""
    command = [sys.executable, str(ROOT / "tools" / name), *arguments]
    sys.stdout.write(f"\n$ python tools/{name} {' '.join(arguments)}\n")
    sys.stdout.flush()
    code = subprocess.run(command, env=os.environ, check=False).returncode
    if code != 0:
        raise GkdError(f"tools/{name} ended with exit code {code}; its own message is above")


def _outcome(arguments: argparse.Namespace, run: str, seed: int, pairs: PairSet) -> Outcome:
    folder = _run_folder(arguments, run, seed)
    backbone, input_spec, _ = load_student(folder / STUDENT_FILE)
    result = evaluate_pairs(backbone, input_spec, pairs, flip=True, batch_size=64, device=torch.device("cpu"))
    _, speeds = read_metrics(folder / "metrics.jsonl", "time/images_per_second")
    return Outcome(run, seed, folder, result, num_parameters(backbone), statistics.median(speeds))


def _report(arguments: argparse.Namespace, outcomes: Sequence[Outcome]) -> None:
    table = format_table([_row(outcome) for outcome in outcomes])
    if len(arguments.seeds) > 1:
        table += "\n" + format_table([_mean_row(run, [o for o in outcomes if o.run == run]) for run in RUNS])
    plots = _plot(arguments, outcomes)
    report = arguments.folder / "report.json"
    with atomic_write(report) as temporary:
        temporary.write_text(json.dumps([_plain(outcome) for outcome in outcomes], indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(
        f"\nverification of {outcomes[0].result.num_pairs} pairs of identities never trained on\n\n{table}\n"
    )
    sys.stdout.write(f"figures       {report}\nplots         {', '.join(str(plot) for plot in plots)}\n")
    sys.stdout.write(f"faces         {arguments.data / 'contact_sheet.png'}\n")
    for outcome in outcomes:
        sys.stdout.write(f"weights       {outcome.folder / STUDENT_FILE}\n")
    sys.stdout.write(f"TensorBoard   tensorboard --logdir {arguments.folder}\n")


def _row(outcome: Outcome) -> dict[str, str]:
    result = outcome.result
    return {
        "network": TITLES[outcome.run],
        "seed": str(outcome.seed),
        "accuracy %": f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}",
        "TAR@FAR=1e-2 %": _percent(result.tar_at_far[1e-2]),
        "TAR@FAR=1e-3 %": _percent(result.tar_at_far[1e-3]),
        "AUC": f"{result.auc:.4f}",
        "parameters": f"{outcome.num_parameters:,}",
        "trained at": f"{outcome.images_per_second:.0f} img/s",
    }


def _mean_row(run: str, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Mean over the seeds ± sample standard deviation over them."""
    accuracies = [100 * outcome.result.accuracy for outcome in outcomes]
    tars = [100 * (outcome.result.tar_at_far[1e-2] or 0.0) for outcome in outcomes]
    return {
        "mean over seeds": TITLES[run],
        "accuracy %": f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}",
        "TAR@FAR=1e-2 %": f"{statistics.mean(tars):.2f} ± {statistics.stdev(tars):.2f}",
    }


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}"


def _plain(outcome: Outcome) -> dict[str, object]:
    return {
        "run": outcome.run,
        "seed": outcome.seed,
        "folder": str(outcome.folder),
        "num_parameters": outcome.num_parameters,
        "images_per_second": outcome.images_per_second,
        **outcome.result.to_json(),
    }


def _plot(arguments: argparse.Namespace, outcomes: Sequence[Outcome]) -> list[Path]:
    """Loss curves, ROC and score histograms of the first seed."""
    first = {outcome.run: outcome for outcome in outcomes if outcome.seed == arguments.seeds[0]}
    paths = [arguments.folder / "loss.png", arguments.folder / "roc.png"]
    losses = {
        TITLES[run]: read_metrics(outcome.folder / "metrics.jsonl", "loss/classification")
        for run, outcome in first.items()
    }
    plot_curves(losses, paths[0], "classification loss")
    curves = {TITLES[run]: roc_curve(outcome.result.cosines, outcome.result.is_same) for run, outcome in first.items()}
    plot_roc(curves, paths[1])
    for run, outcome in first.items():
        path = arguments.folder / f"scores_{run}.png"
        cosines, is_same = outcome.result.cosines, outcome.result.is_same
        plot_scores(cosines[is_same], cosines[~is_same], path, f"Scores of the pairs: {TITLES[run]}")
        paths.append(path)
    return paths
