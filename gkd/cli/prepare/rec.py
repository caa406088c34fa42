"""`prepare.py pack` and `split`: making .rec files."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from gkd.cli.prepare.tasks import Tasks

_log = logging.getLogger(__name__)


def add(tasks: Tasks) -> None:
    """Add the tasks to the command line."""
    _add_pack(tasks)
    _add_split(tasks)


def _add_pack(tasks: Tasks) -> None:
    task = tasks.add_parser("pack", help="write a folder with a sub-folder for each identity into a .rec")
    task.add_argument("folder", type=Path, metavar="FOLDER", help="aligned images, FOLDER/<identity>/<image>")
    task.add_argument("out", type=Path, metavar="OUT.rec", help="the file to write")
    task.set_defaults(run=_pack)


def _add_split(tasks: Tasks) -> None:
    task = tasks.add_parser("split", help="set some people apart: OUT/train.rec and OUT/held_out.rec")
    task.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help="folders of identities or .rec files; the same name in two of them is one identity",
    )
    task.add_argument("out", type=Path, metavar="OUT", help="the folder to write into")
    task.add_argument("--held-out", type=int, required=True, metavar="N", help="identities to hold out")
    task.add_argument("--seed", type=int, default=0, help="who is held out is a function of it (%(default)s)")
    task.set_defaults(run=_split)


def _pack(arguments: argparse.Namespace) -> None:
    from gkd.data import pack_folder

    num_images = pack_folder(arguments.folder, arguments.out)
    _log.info("packed %d images into %s", num_images, arguments.out)


def _split(arguments: argparse.Namespace) -> None:
    from gkd.data.rec_split import split_faces

    report = split_faces(arguments.sources, arguments.out, held_out=arguments.held_out, seed=arguments.seed)
    sys.stdout.write(json.dumps(report["counts"]) + "\n")
