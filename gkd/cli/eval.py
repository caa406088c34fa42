"""Verify faces with trained networks: `tools/eval.py --weights [NAME=]PATH … --data FILE.bin|DIR … --ijb FOLDER …`.

The weights may be runs of ours or files of any project that `tools/inspect_weights.py` knows. How a network takes its
pixels is known for most of them; an .onnx file does not say, so that is declared. Unless it is certain, it is checked.

Works on one process and under torchrun, where the images are shared over the ranks and rank 0 reports.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from gkd.cli import EXIT_REFUSED, run_tool
from gkd.cli.eval_arguments import check_arguments, check_outputs, parser
from gkd.cli.eval_models import load_models
from gkd.cli.eval_report import write_results
from gkd.cli.eval_run import ModelFigures, check_inputs, evaluate_ijb_folders, evaluate_sets
from gkd.cli.eval_sets import agreed, check_identities, find_ijb, find_sets
from gkd.cli.eval_statistics import Evaluation, add_intervals, compare
from gkd.core import distributed
from gkd.core.errors import ConfigError
from gkd.core.log import set_up_logging
from gkd.inference.embed import default_batch_size


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code, 2 where a set or the whole was refused."""
    arguments = parser().parse_args(argv)
    return run_tool(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    check_arguments(arguments)
    with distributed.process_group():
        set_up_logging(distributed.rank())
        agreed(lambda: check_outputs(arguments) if distributed.rank() == 0 else None)
        sets = agreed(lambda: find_sets(arguments.data))
        folders = agreed(lambda: find_ijb(arguments.ijb, list(sets)))
        check_identities(arguments, sets)
        device = _device(arguments.device)
        if arguments.batch_size is None:
            arguments.batch_size = default_batch_size(device)
        models = [ModelFigures(model) for model in agreed(lambda: load_models(arguments))]
        check_inputs(models, sets, arguments, device)
        facts = evaluate_sets(models, sets, arguments, device)
        evaluate_ijb_folders(models, folders, arguments, device)
        if distributed.rank() == 0:
            add_intervals(models, facts, arguments)
            comparisons = compare(models, facts, arguments)
            write_results(Evaluation(models, facts, comparisons, device), arguments)
        return EXIT_REFUSED if any(figures.failed for figures in models) else 0


def _device(name: str | None) -> torch.device:
    if name is None:
        return distributed.device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device
