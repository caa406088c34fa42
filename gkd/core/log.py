"""Logging set-up for the command-line tools; the library itself only calls `logging.getLogger(__name__)`."""

from __future__ import annotations

import logging
import sys


def set_up_logging(rank: int = 0) -> None:
    """Send INFO and above to standard error on rank 0, warnings and above (named by rank) on the others."""
    level = logging.INFO if rank == 0 else logging.WARNING
    who = "" if rank == 0 else f"[rank {rank}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
