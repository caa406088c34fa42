"""`prepare.py synthetic`: drawn faces."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gkd.cli.prepare.tasks import Tasks

_log = logging.getLogger(__name__)


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
    task = tasks.add_parser("synthetic", help="draw faces into train.rec, validation.bin and test.bin")
    task.add_argument("out", type=Path, metavar="OUT", help="the folder to write into")
    task.add_argument("--num-identities", type=int, default=300, help="identities to train on (%(default)s)")
    task.add_argument("--images-per-identity", type=int, default=30, help="images of each (%(default)s)")
    task.add_argument("--eval-identities", type=int, default=200, help="others, for each set of pairs (%(default)s)")
    task.add_argument("--eval-pairs", type=int, default=2000, help="pairs in each of the two sets (%(default)s)")
    task.add_argument("--seed", type=int, default=0, help="every face is a function of it (%(default)s)")
    task.add_argument("--size", type=int, default=112, help="height and width in pixels (%(default)s)")
    task.add_argument("--workers", type=int, default=1, help="processes that draw (%(default)s)")
    task.set_defaults(run=_write_synthetic)


def _write_synthetic(arguments: argparse.Namespace) -> None:
    from gkd.data.synthetic import write_synthetic

    write_synthetic(
        arguments.out,
        num_identities=arguments.num_identities,
        images_per_identity=arguments.images_per_identity,
        eval_identities=arguments.eval_identities,
        eval_pairs=arguments.eval_pairs,
        seed=arguments.seed,
        size=arguments.size,
        num_workers=arguments.workers,
    )
    _log.info("synthetic faces are in %s", arguments.out)
