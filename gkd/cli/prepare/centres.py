"""`prepare.py centres`: embedding a teacher's training images."""

from __future__ import annotations

import argparse
from pathlib import Path

from gkd.cli.prepare.tasks import Tasks


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
    task = tasks.add_parser(
        "centres",
        help="embed a teacher's training images: its class centres and a report of label noise",
        description="Embeds the training images of CONFIG with its teacher (shared over the ranks under torchrun), and "
        "makes the class centres that its teacher.centres names, without training.",
    )
    task.add_argument("config", type=Path, metavar="CONFIG", help="a training config whose teacher has `centres`")
    task.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    task.set_defaults(run=_make_centres)


def _make_centres(arguments: argparse.Namespace) -> None:
    from gkd.cli.centres import make_centres

    make_centres(arguments.config, arguments.overrides)
