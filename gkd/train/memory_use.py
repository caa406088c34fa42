"""How much memory a process has taken."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_GIB = 1 << 30
_STATM = Path("/proc/self/statm")


def memory_gib(device: torch.device) -> dict[str, float]:
    """GiB in use now, and on CUDA at most since the start, under the names that they have in the log.

    On CUDA what tensors of this process hold on its GPU; on a CPU the process's resident memory without that of its
    loading processes, and nothing where the system does not tell (it is read from /proc).
    """
    if device.type == "cuda":
        return {
            "memory/allocated_gib": torch.cuda.memory_allocated(device) / _GIB,
            "memory/peak_gib": torch.cuda.max_memory_allocated(device) / _GIB,
        }
    try:
        num_pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return {}
    return {"memory/resident_gib": num_pages * os.sysconf("SC_PAGE_SIZE") / _GIB}
