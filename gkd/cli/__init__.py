"""The command-line tools: arguments, a config, an object graph, a run, an exit code.

Exit codes: 0 done, 2 refused or failed with one message, 130 stopped by Ctrl-C, 138 by SIGUSR1,
143 by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from gkd.core.errors import GkdError

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


def run_tool(function: Callable[[], int | None]) -> int:
    """Call `function` and turn what it raises into a message and an exit code.

    A GkdError prints its message alone; set GKD_TRACEBACK=1 for the traceback as well. Under torchrun a refusal that
    all ranks share is printed by each; those other than 0 name themselves, for theirs may be another.
    """
    try:
        return function() or 0
    except (GkdError, OSError) as error:  # such as a disk that is full, or a folder that cannot be written
        if os.environ.get("GKD_TRACEBACK") == "1":
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        who = "error" if rank == "0" else f"error on rank {rank}"
        sys.stderr.write(f"{who}: {error}\n")
        return EXIT_REFUSED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED


def leave(code: int) -> NoReturn:
    """End the process of a tool, without taking it apart where torchrun started it; see `distributed.end_process`."""
    if "WORLD_SIZE" in os.environ:
        from gkd.core import distributed  # brings torch, which takes seconds to import

        distributed.end_process(code)
    sys.exit(code)
