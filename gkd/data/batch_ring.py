"""Memory that loading processes and the main one share: a row of slots for micro-batches, used over and over.

It is anonymous memory, made before the processes are forked: it has no name, so nothing of it can be left behind in
/dev/shm, whose size does not matter either; it goes with the last process that has it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError

_PAGE = mmap.PAGESIZE
_MIB = 1 << 20


@dataclass(frozen=True)
class Slot:
    """Room for the N rows of a micro-batch.

    images: uint8 (N, H, W, 3). labels, sample_ids: int64 (N,). encoded_bytes: int64 (N,), 0 where a row of `images`
    holds pixels, else how many bytes at its beginning are an encoded image.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    sample_ids: npt.NDArray[np.int64]
    encoded_bytes: npt.NDArray[np.int64]


class BatchRing:
    """`num_slots` slots of `num_rows` rows each.

    Attributes:
        slots: the slots.
        memory: all of them, as bytes: uint8 (B,).

    Raises:
        DataError: there is not that much memory.
    """

    def __init__(self, *, num_slots: int, num_rows: int, image_size: tuple[int, int]) -> None:
        image_bytes = num_rows * image_size[0] * image_size[1] * 3
        stride = _whole_pages(image_bytes) + _whole_pages(3 * 8 * num_rows)
        _require_memory(num_slots * stride, num_slots, num_rows, image_size)
        # Kept by the arrays made from it, and unmapped with the last of them.
        view = mmap.mmap(-1, num_slots * stride)
        self.memory: npt.NDArray[np.uint8] = np.frombuffer(view, dtype=np.uint8)
        self.slots = tuple(
            _slot(self.memory[number * stride : (number + 1) * stride], num_rows, image_size)
            for number in range(num_slots)
        )


def _slot(memory: npt.NDArray[np.uint8], num_rows: int, image_size: tuple[int, int]) -> Slot:
    image_bytes = num_rows * image_size[0] * image_size[1] * 3
    start = _whole_pages(image_bytes)
    columns = memory[start : start + 3 * 8 * num_rows].view(np.int64).reshape(3, num_rows)
    return Slot(memory[:image_bytes].reshape(num_rows, *image_size, 3), columns[0], columns[1], columns[2])


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE


def _require_memory(num_bytes: int, num_slots: int, num_rows: int, image_size: tuple[int, int]) -> None:
    available = _available_bytes()
    if available is not None and num_bytes > available:
        raise DataError(
            f"the loader needs {num_bytes / _MIB:,.0f} MiB of memory for {num_slots} micro-batches of {num_rows} "
            f"images of {image_size[0]}x{image_size[1]} pixels, but {available / _MIB:,.0f} MiB are free; use more "
            "micro-batches, or a smaller batch"
        )


def _available_bytes() -> int | None:
    """What the system says it could give to processes without swapping; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
