"""Runs that were trained: found on the disk, read while they may still be written, listed, compared, drawn.

Everything in a run folder is data from outside: sizes are bounded, and what is damaged is left out and told. Nothing
here needs torch, and nothing is written into a run folder.
"""

from gkd.runs.find import find_runs
from gkd.runs.run import Run, read_run, read_runs

__all__ = ["Run", "find_runs", "read_run", "read_runs"]
