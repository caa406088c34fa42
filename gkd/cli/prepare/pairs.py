"""`prepare.py pairs`: making verification sets."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gkd.cli.prepare.tasks import Tasks

if TYPE_CHECKING:
    from gkd.data.pairs import PairSet

_NUM_PAIRS, _FOLDS, _SEED = 2000, 10, 0

_log = logging.getLogger(__name__)


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
    task = tasks.add_parser(
        "pairs",
        help="write a verification .bin: random pairs of a set's images, or the pairs of a list",
        example="prepare.py pairs lfw_aligned lfw.bin --pairs pairs.txt",
    )
    task.add_argument("source", type=Path, metavar="SOURCE", help="a folder of identities, or a .rec for random pairs")
    task.add_argument("out", type=Path, metavar="OUT.bin", help="the file to write")
    _add_random(task)
    _add_lists(task)
    task.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="resize square images that are not NxN, into PNG; without it all must be of one size",
    )
    task.set_defaults(run=_pair)


def _add_random(task: argparse.ArgumentParser) -> None:
    random = task.add_argument_group("random pairs")
    random.add_argument("--num-pairs", type=int, help=f"pairs, half of them of one person ({_NUM_PAIRS})")
    random.add_argument("--folds", type=int, help=f"contiguous parts, each balanced ({_FOLDS})")
    random.add_argument("--seed", type=int, help=f"the pairs are a function of it ({_SEED})")


def _add_lists(task: argparse.ArgumentParser) -> None:
    lists = task.add_argument_group("pairs of a list")
    which = lists.add_mutually_exclusive_group()
    which.add_argument(
        "--pairs",
        type=Path,
        metavar="PAIRS.txt",
        help="LFW's format: `folds n`, or n alone, then lines `name n1 n2` and `name1 n1 name2 n2`; "
        "images are SOURCE/name/name_0001.jpg or of another image suffix",
    )
    which.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="the header left,right,is_same[,fold]; paths relative to SOURCE; is_same 1, 0, true or false",
    )
    lists.add_argument(
        "--on-missing",
        choices=["error", "skip"],
        help="skip leaves pairs with missing images out, and more where that keeps folds even (error)",
    )


def _pair(arguments: argparse.Namespace) -> None:
    _require_fitting(arguments)
    pairs = _make_random(arguments) if arguments.pairs is None and arguments.csv is None else _make_listed(arguments)
    _log.info("wrote %s with %d pairs, %d of them of one person", arguments.out, len(pairs), int(pairs.is_same.sum()))


def _require_fitting(arguments: argparse.Namespace) -> None:
    from gkd.core.errors import ConfigError

    is_listed = arguments.pairs is not None or arguments.csv is not None
    unfit = ("num_pairs", "folds", "seed") if is_listed else ("on_missing",)
    for name in unfit:
        if getattr(arguments, name) is not None:
            kind = "random pairs, not to those of a list" if is_listed else "the pairs of a list (--pairs or --csv)"
            raise ConfigError(f"--{name.replace('_', '-')}: belongs to {kind}; leave it out")


def _make_random(arguments: argparse.Namespace) -> PairSet:
    from gkd.data.pair_making import make_pair_file

    return make_pair_file(
        arguments.source,
        arguments.out,
        num_pairs=_NUM_PAIRS if arguments.num_pairs is None else arguments.num_pairs,
        folds=_FOLDS if arguments.folds is None else arguments.folds,
        seed=_SEED if arguments.seed is None else arguments.seed,
        size=arguments.size,
    )


def _make_listed(arguments: argparse.Namespace) -> PairSet:
    from gkd.data.pair_lists import read_csv_pairs, read_lfw_pairs
    from gkd.data.pair_making import make_listed_pair_file

    pair_list = read_csv_pairs(arguments.csv) if arguments.csv is not None else read_lfw_pairs(arguments.pairs)
    return make_listed_pair_file(
        arguments.source,
        arguments.out,
        pair_list,
        skip_missing=arguments.on_missing == "skip",
        size=arguments.size,
    )
