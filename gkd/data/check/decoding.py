"""Decodes every image of a set, in several processes, and tells which are damaged.

OpenCV gives back an image for nearly any JPEG: it fills what it cannot read, and the decoder's complaint goes to
standard error. That output is caught for each image, so an image whose decoder complained is damaged. What no check
can see is a changed bit after which the Huffman codes still make sense: a JPEG has no checksum, and about seven in ten
changed bits of its pixels only alter the picture.

N images.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import GIB, read_bounded
from gkd.core.progress import progress
from gkd.data.check.jpeg import scan_fault
from gkd.data.image_header import image_format, image_size, is_whole
from gkd.data.record_format import read_payload, unpack_record

_CHUNK = 256
_MAX_PIXELS = 1 << 26
_IMAGES_WORTH_A_PROCESS = 20_000
_MAX_AUTOMATIC_WORKERS = 16

# What the formats that have an end mark end with, by their first two bytes; the others end as they like.
_ENDS = defaultdict(bytes, {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"})

# From what names an image (an offset, a file name, its bytes) to its encoded bytes.
Reader = Callable[[Any], bytes]


class ReadRecord:
    """Reads the body of the record at an offset of a .rec file."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._descriptor: int | None = None

    def __call__(self, offset: int) -> bytes:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        return unpack_record(read_payload(self._read_at, int(offset), self._size)).body

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _read_at(self, offset: int, length: int) -> bytes:
        assert self._descriptor is not None
        return os.pread(self._descriptor, length, offset)


def read_image_file(path: Path) -> bytes:
    """The content of an image file."""
    return read_bounded(path, GIB)


def read_bytes(encoded: bytes) -> bytes:
    """What is already in memory."""
    return encoded


class BadImage(NamedTuple):
    """Why the image number `image` is unusable, and the one word for it."""

    image: int
    kind: str
    what: str


@dataclass
class Images:
    """What decoding found.

    Attributes:
        digests: uint64 (N, 2), 16 bytes of BLAKE2b of each image's encoded bytes.
        sizes: int32 (N, 2), height and width in pixels; 0 where the image is bad.
        bad: those that cannot be used.
        trailed: those that can, though bytes follow their end.
    """

    digests: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int32]
    bad: list[BadImage]
    trailed: list[int]


class Items(Protocol):
    """What names images: a list, an array, or anything that has a length and can be sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, chunk: slice, /) -> Any: ...


def check_images(items: Items, read: Reader, num_workers: int | None = None) -> Images:
    """Read, hash and decode each of `items`; memory is 24 bytes an image.

    Args:
        items: what `read` turns into encoded bytes.
        num_workers: processes; by default as many as the machine has and the number of images is worth.

    Raises:
        ConfigError: fewer than one worker. DataError: a process died.
    """
    num_images = len(items)
    workers = _choose_workers(num_workers, num_images)
    found = Images(np.zeros((num_images, 2), np.uint64), np.zeros((num_images, 2), np.int32), [], [])
    chunks = (items[start : start + _CHUNK] for start in range(0, num_images, _CHUNK))
    results = map(_Checker(read), chunks) if workers == 1 else _in_processes(chunks, read, workers)
    for _ in progress(_collect(results, found), "decoding", total=num_images):
        pass
    return found


def most_common_size(images: Images) -> tuple[int, int] | None:
    """(height, width) that most images have, or None where no image is good."""
    good = images.sizes[images.sizes[:, 0] > 0]
    if not len(good):
        return None
    sizes, counts = np.unique(good, axis=0, return_counts=True)
    height, width = sizes[int(np.argmax(counts))]
    return int(height), int(width)


def image_fault(encoded: bytes) -> tuple[str, str] | tuple[int, int]:
    """(kind, what) for an image that cannot be used, else its (height, width)."""
    kind = image_format(encoded)
    if not encoded:
        return "no-image", "it has no image"
    if kind is None:
        return "no-image", f"not a JPEG, PNG, BMP or WebP image (begins with {encoded[:8]!r})"
    size = image_size(encoded)
    if size is None or min(size) < 1 or size[0] * size[1] > _MAX_PIXELS:
        return "damaged", f"the {kind} image's header is damaged"
    if not is_whole(encoded):
        return "cut-short", f"the {kind} image is cut short"
    what = scan_fault(encoded) if kind == "jpeg" else None
    if what is not None:
        return "damaged", f"the jpeg image is damaged: {what}"
    return _decoding_fault(encoded, kind, size)


def _decoding_fault(encoded: bytes, kind: str, size: tuple[int, int]) -> tuple[str, str] | tuple[int, int]:
    try:
        pixels, complaint = _catcher().decode(encoded)
    except cv2.error as error:
        return "damaged", f"the {kind} image cannot be decoded ({error.err})"
    if pixels is None:
        return "damaged", f"the {kind} image cannot be decoded" + (f" ({complaint})" if complaint else "")
    if complaint:
        return "damaged", f"the {kind} image is damaged: {complaint}"
    if pixels.shape[:2] != size and pixels.shape[1::-1] != size:
        return "damaged", f"the {kind} image's header says {size[0]}x{size[1]}, its pixels are {pixels.shape[:2]}"
    return int(pixels.shape[0]), int(pixels.shape[1])


class _Catcher:
    """Catches what the decoder's C code writes to standard error while it decodes one image."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._descriptor = os.dup(file.fileno())  # lives as long as the process

    def decode(self, encoded: bytes) -> tuple[npt.NDArray[Any] | None, str]:
        """The pixels, or None, and the complaint's first line, or nothing."""
        saved = os.dup(2)
        os.dup2(self._descriptor, 2)
        try:
            pixels = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            complaint = self._take()
        return pixels, complaint

    def _take(self) -> str:
        descriptor = self._descriptor
        length = os.lseek(descriptor, 0, os.SEEK_CUR)
        if not length:
            return ""
        text = os.pread(descriptor, min(length, 200), 0)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return (text.decode("ascii", "replace").strip().splitlines() or ["a complaint without words"])[0]


@cache
def _catcher() -> _Catcher:
    return _Catcher()


@cache
def decoder_complains() -> bool:
    """Whether this build of OpenCV tells of damaged pixels, tried on an image with bytes put between its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    encoded = cv2.imencode(".jpg", pixels)[1].tobytes()
    return bool(_catcher().decode(encoded[:-2] + bytes(64) + encoded[-2:])[1])


class _Chunk(NamedTuple):
    digests: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.int32]
    bad: list[BadImage]
    trailed: list[int]


class _Checker:
    """Checks the images of a chunk; numbers in `bad` count from the chunk's first."""

    def __init__(self, read: Reader) -> None:
        self._read = read

    def __call__(self, items: Sequence[Any]) -> _Chunk:
        digests, bad, trailed = [], [], []
        sizes = np.zeros((len(items), 2), np.int32)
        for index, item in enumerate(items):
            encoded = b""
            try:
                encoded = self._read(item)
                found = image_fault(encoded)
            except DataError as error:
                found = ("unreadable", str(error))
            except OSError as error:
                found = ("unreadable", f"cannot be read: {error.strerror}")
            digests.append(hashlib.blake2b(encoded, digest_size=16).digest())
            if isinstance(found[0], str):
                bad.append(BadImage(index, found[0], str(found[1])))
            else:
                sizes[index] = found
                if not encoded.endswith(_ENDS[encoded[:2]]):
                    trailed.append(index)
        return _Chunk(np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2), sizes, bad, trailed)


_checker: _Checker | None = None


def _start_process(read: Reader) -> None:
    global _checker
    cv2.setNumThreads(1)
    _checker = _Checker(read)


def _check_in_process(items: Sequence[Any]) -> _Chunk:
    assert _checker is not None
    return _checker(items)


def _in_processes(chunks: Iterator[Any], read: Reader, num_workers: int) -> Iterator[_Chunk]:
    """The chunks' results in order, with a bounded number under way."""
    # A forked server imports once for all; spawned processes would import torch each, which takes seconds.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    waiting: deque[Future[_Chunk]] = deque()
    with ProcessPoolExecutor(num_workers, context, _start_process, (read,)) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_check_in_process, chunk))
                if len(waiting) > 4 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError("a checking process died; perhaps memory ran out: use fewer --workers") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _collect(results: Iterator[_Chunk], found: Images) -> Iterator[int]:
    """Put the results into their places, yielding once for each image."""
    start = 0
    for chunk in results:
        stop = start + len(chunk.sizes)
        found.digests[start:stop], found.sizes[start:stop] = chunk.digests, chunk.sizes
        found.trailed += [start + image for image in chunk.trailed]
        found.bad += [bad._replace(image=start + bad.image) for bad in chunk.bad]
        yield from range(stop - start)
        start = stop


def _choose_workers(num_workers: int | None, num_images: int) -> int:
    if num_workers is None:
        available = min(len(os.sched_getaffinity(0)), _MAX_AUTOMATIC_WORKERS)
        return max(1, min(available, num_images // _IMAGES_WORTH_A_PROCESS))
    if num_workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {num_workers}")
    return num_workers
