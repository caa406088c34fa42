"""`prepare.py pairs`: making verification sets."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from gkd.cli.prepare.tasks import Tasks

_log = logging.getLogger(__name__)


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
    task = tasks.add_parser("pairs", help="write random verification pairs of a set's images into a .bin")
    task.add_argument("source", type=Path, metavar="SOURCE", help="a folder of identities or a .rec file")
    task.add_argument("out", type=Path, metavar="OUT.bin", help="the file to write")
    task.add_argument("--num-pairs", type=int, default=2000, help="pairs, half of them of one person (%(default)s)")
    task.add_argument("--folds", type=int, default=10, help="contiguous parts, each balanced (%(default)s)")
    task.add_argument("--seed", type=int, default=0, help="the pairs are a function of it (%(default)s)")
    task.set_defaults(run=_pair)


def _pair(arguments: argparse.Namespace) -> None:
    from gkd.data.pair_making import make_pair_file

    pairs = make_pair_file(
        arguments.source, arguments.out, num_pairs=arguments.num_pairs, folds=arguments.folds, seed=arguments.seed
    )
    _log.info("wrote %s with %d pairs, %d of them of one person", arguments.out, len(pairs), int(pairs.is_same.sum()))
