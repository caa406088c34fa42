"""`prepare.py centres`: embedding a teacher's training images."""

from __future__ import annotations

import argparse
from pathlib import Path

from gkd.cli.prepare.tasks import Tasks


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
    task = tasks.add_parser(
        "centres",
        aliases=["cache"],
        help="embed a teacher's training images: its cache, or its class centres with a report of label noise",
        description="Embeds the training images of CONFIG with its teacher (shared over the ranks under torchrun) into "
        "the folder that its teacher.cache or teacher.centres names, without training. With centres it makes them "
        "too, and reports label noise.",
    )
    task.add_argument(
        "config", type=Path, metavar="CONFIG", help="a training config with teacher.cache or teacher.centres"
    )
    task.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    task.set_defaults(run=_make_centres)


def _make_centres(arguments: argparse.Namespace) -> None:
    from gkd.cli.centres import make_centres

    make_centres(arguments.config, arguments.overrides)
