"""What the tasks of `tools/prepare.py` add themselves to."""

from __future__ import annotations

import argparse
from typing import Any


class Tasks:
    """The command line's tasks. Each has a line of help, a description, an example, and a function that it runs."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._tasks = parser.add_subparsers(required=True, metavar="TASK")

    def add_parser(self, name: str, *, help: str, example: str = "", **settings: Any) -> argparse.ArgumentParser:
        """A parser for the task `name`; `example` ends its `--help`. Set its `run` with `set_defaults`."""
        settings.setdefault("description", help[:1].upper() + help[1:] + ".")
        epilog = f"example:\n  {example}" if example else None
        return self._tasks.add_parser(
            name, help=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )
