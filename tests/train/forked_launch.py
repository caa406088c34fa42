"""A launcher like torchrun, whose ranks start in a tenth of the time: forks of a process that has torch already.

The ranks run `gkd.cli.train.main` as `tools/train.py` does, in sessions of their own, with torchrun's environment. As
under torchrun the launcher hands a SIGTERM on, ends the other ranks when one fails, and gives the exit code 1 then.
Only a process with one thread may call `start`: forking keeps no other thread alive, but does keep what it had locked.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch._dynamo  # noqa: F401  (an optimiser imports it, which takes each rank a second)

import gkd.cli.train
from gkd.cli import leave

SECONDS_TO_LEAVE = 30.0  # as torchrun gives them


def start(arguments: Sequence[str], num_ranks: int, log: Path) -> int:
    """Fork a launcher of `tools/train.py ARGUMENTS` that adds its ranks' output to `log`; returns its process id."""
    assert threading.active_count() == 1
    port = _free_port()
    process_id = os.fork()
    if process_id == 0:
        _never_return(lambda: _launch(arguments, num_ranks, port, log))
    return process_id


def _launch(arguments: Sequence[str], num_ranks: int, port: int, log: Path) -> int:
    os.setsid()
    ranks: set[int] = set()

    def hand_on(number: int, frame: FrameType | None) -> None:
        _signal_all(ranks, signal.SIGTERM)

    signal.signal(signal.SIGTERM, hand_on)
    for rank in range(num_ranks):
        process_id = os.fork()
        if process_id == 0:
            _never_return(lambda rank=rank: _run_rank(arguments, rank, num_ranks, port, log))
        ranks.add(process_id)
    return 0 if all(code == 0 for code in _wait(ranks)) else 1


def _run_rank(arguments: Sequence[str], rank: int, num_ranks: int, port: int, log: Path) -> NoReturn:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    sys.argv = ["tools/train.py", *arguments]
    leave(gkd.cli.train.main(list(arguments)))


def _wait(ranks: set[int]) -> list[int]:
    """The exit codes of all; once one has failed the others are asked to leave, and ended where they do not."""
    codes: list[int] = []
    deadline = None
    while ranks:
        process_id, status = os.waitpid(-1, os.WNOHANG)
        if process_id:
            ranks.discard(process_id)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1] != 0 and deadline is None:
                _signal_all(ranks, signal.SIGTERM)
                deadline = time.monotonic() + SECONDS_TO_LEAVE
        elif deadline is not None and time.monotonic() > deadline:
            _signal_all(ranks, signal.SIGKILL)
            deadline = None
        else:
            time.sleep(0.005)
    return codes


def _signal_all(process_ids: set[int], number: signal.Signals) -> None:
    for process_id in sorted(process_ids):
        with suppress(ProcessLookupError):
            os.kill(process_id, number)


def _never_return(function) -> NoReturn:
    """A fork must not go on with its parent's work, whatever happens to it."""
    code = 1
    try:
        code = function()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
