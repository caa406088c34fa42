"""What the C library does with memory that is freed: whether the next step finds it still there."""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD_BYTES = 256 << 20
_SET_BY_USERS = ("GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for later; returns whether that was done.

    glibc gives large blocks back to the system when they are freed, and a training step on a CPU frees and takes
    gigabytes of them: each page is then cleared and mapped anew in every step. Kept, the process holds the memory of
    its largest step until it ends. Nothing is done with another C library, or where the environment sets another
    allocator or malloc's own settings (`MALLOC_…`).
    """
    is_set = any(name in os.environ for name in _SET_BY_USERS) or any(name.startswith("MALLOC_") for name in os.environ)
    if not sys.platform.startswith("linux") or is_set:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No block comes from mmap, the heap is never cut, and it grows by large pieces.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
