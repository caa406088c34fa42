"""What the tasks of `tools/prepare.py` add themselves to."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

_WIDTH = 100


class Tasks:
    """The command line's tasks. Each has a line of help, a description, an example, and a function that it runs."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._tasks = parser.add_subparsers(required=True, metavar="TASK")

    def add_parser(self, name: str, *, help: str, example: str = "", **settings: Any) -> argparse.ArgumentParser:
        """A parser for the task `name`; `example` ends its `--help`. Set its `run` with `set_defaults`."""
        description = settings.pop("description", help[:1].upper() + help[1:] + ".")
        paragraphs = [textwrap.fill(" ".join(text.split()), _WIDTH) for text in description.split("\n\n")]
        epilog = f"example:\n  {example}" if example else None
        return self._tasks.add_parser(
            name,
            help=help,
            description="\n\n".join(paragraphs),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )
