"""`python -m gkd.cli.study_score RUN SET.bin`: score a study's run on a set of pairs; the study starts it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gkd.cli import run_tool
from gkd.study.score import score_run


def main(argv: Sequence[str] | None = None) -> int:
    """Score one run on one set; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gkd.study.score", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("set_path", type=Path)
    parser.add_argument("--no-flip", action="store_true")
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args(argv)
    flip = not arguments.no_flip
    return run_tool(lambda: score_run(arguments.run_folder, arguments.set_path, flip, arguments.batch_size))


if __name__ == "__main__":
    raise SystemExit(main())
