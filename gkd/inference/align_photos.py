"""Lists the photos of a folder and aligns them in several processes."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import cv2

from gkd.core.errors import DataError
from gkd.data.image_folder import IMAGE_SUFFIXES
from gkd.data.text_lists import Faults
from gkd.inference.align_photo import PhotoOutcome

Aligner = Callable[[str], PhotoOutcome]
MakeAligner = Callable[[], Aligner]

_CHUNK = 8
_CHUNKS_AHEAD = 4  # of each process

_aligner: Aligner | None = None  # of this process, where it is one of several


def list_photos(folder: Path) -> dict[str, tuple[int, int]]:
    """The photos at any depth, sorted, each with its size in bytes and time of change in nanoseconds.

    Hidden files and folders, and files that are no images by their suffix, are left out. Links are followed, but no
    folder is entered twice.

    Raises:
        DataError: no photos, or names that are not UTF-8, which no table could hold.
    """
    faults = Faults(folder, "names are not UTF-8")
    photos: dict[str, tuple[int, int]] = {}
    for path in sorted(_walk(folder, set())):
        name = path.relative_to(folder).as_posix()
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            faults.add(f"the name {name!r} is not UTF-8; rename the file")
            continue
        status = path.stat()
        photos[name] = (status.st_size, status.st_mtime_ns)
    faults.raise_any()
    if not photos:
        raise DataError(f"{folder}: holds no photos ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return photos


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, entered)
        elif entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            yield entry


@contextmanager
def photo_outcomes(
    make_aligner: MakeAligner, photos: Sequence[str], num_workers: int
) -> Iterator[Iterator[PhotoOutcome]]:
    """The outcome of each photo in turn, aligned in this process or in several; a bounded number is under way.

    Raises:
        DataError: a process died.
    """
    if num_workers == 1 or len(photos) <= _CHUNK:
        yield map(make_aligner(), photos)
        return
    # Forked children would inherit the locks of OpenCV's and torch's threads.
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start_process, (make_aligner,))
    try:
        yield chain.from_iterable(_in_order(pool, photos, num_workers * _CHUNKS_AHEAD))
    except BrokenProcessPool as error:
        raise DataError(
            "a process that aligned photos died, perhaps for want of memory; run the same command again, with fewer "
            "--workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, photos: Sequence[str], num_ahead: int) -> Iterator[list[PhotoOutcome]]:
    waiting: deque[Future[list[PhotoOutcome]]] = deque()
    for start in range(0, len(photos), _CHUNK):
        waiting.append(pool.submit(_align_chunk, photos[start : start + _CHUNK]))
        if len(waiting) >= num_ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _start_process(make_aligner: MakeAligner) -> None:
    global _aligner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    cv2.setNumThreads(1)
    _aligner = make_aligner()


def _align_chunk(photos: Sequence[str]) -> list[PhotoOutcome]:
    assert _aligner is not None, "_start_process came first"
    return [_aligner(photo) for photo in photos]
