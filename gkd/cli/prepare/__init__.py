"""Makes, checks and changes data without mxnet; `prepare.py TASK --help` has an example of each."""

from __future__ import annotations

import argparse

from gkd.cli import run_tool
from gkd.cli.prepare import align, centres, check, clean, pairs, rec, shards, synthetic
from gkd.cli.prepare.tasks import Tasks
from gkd.core.log import set_up_logging


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    arguments = _parser().parse_args(argv)
    set_up_logging()
    return run_tool(lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/prepare.py", description=__doc__)
    tasks = Tasks(parser)
    for task in (synthetic, align, rec, shards, check, pairs, centres, clean):
        task.add(tasks)
    return parser
