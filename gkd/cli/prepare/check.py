"""Tasks of `prepare.py` that follow."""

from __future__ import annotations

from gkd.cli.prepare.tasks import Tasks


def add(tasks: Tasks) -> None:
    """Add the task to the command line."""
