"""Reads the images of verification pairs, each once, and checks that they decode and are of one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

import cv2

from gkd.core.errors import ConfigError, DataError
from gkd.core.progress import progress
from gkd.data.image_header import image_size
from gkd.data.text_lists import Faults
from gkd.data.transforms import decode_image

Key = TypeVar("Key")

MAX_SIDE = 4096


def read_images(
    keys: Iterable[Key], read: Callable[[Key], bytes], describe: Callable[[Key], str], where: str, size: int | None
) -> dict[Key, bytes]:
    """The encoded image of every key, as `read` gives it.

    Args:
        keys: which images; each is read once, in this order.
        read: the encoded image of a key.
        describe: what to call it in messages.
        where: what begins a message about all of them.
        size: the height and width to give to images that have others, in pixels; these become PNG, the rest stay
            untouched. None where all must be of one size already.

    Raises:
        ConfigError: a size out of range.
        DataError: images that cannot be decoded, or are of several sizes; the first ten are named.
    """
    if size is not None and not 1 <= size <= MAX_SIDE:
        raise ConfigError(f"--size: must be 1 to {MAX_SIDE} pixels, got {size}")
    unique = list(dict.fromkeys(keys))
    faults = Faults(where, "images are unfit")
    images: dict[Key, bytes] = {}
    sizes: dict[Key, tuple[int, int]] = {}
    for key in progress(unique, "reading images"):
        try:
            images[key], sizes[key] = _read_one(read(key), describe(key), size)
        except DataError as error:
            faults.add(str(error))
    faults.raise_any()
    _require_one_size(sizes, describe, where)
    return images


def _read_one(encoded: bytes, where: str, size: int | None) -> tuple[bytes, tuple[int, int]]:
    found = image_size(encoded) or (0, 0)
    if max(found) > MAX_SIDE:
        raise DataError(f"{where}: {found[0]}x{found[1]} pixels are too many; align the faces first")
    pixels = decode_image(encoded, found, where)
    if size is None or found == (size, size):
        return encoded, found
    if found[0] != found[1]:
        raise DataError(f"{where}: {found[0]}x{found[1]} pixels cannot become square without distortion; align it")
    way = cv2.INTER_AREA if size < found[0] else cv2.INTER_LINEAR
    resized = cv2.resize(pixels[..., ::-1], (size, size), interpolation=way)
    return bytes(cv2.imencode(".png", resized)[1]), (size, size)


def _require_one_size(sizes: dict[Key, tuple[int, int]], describe: Callable[[Key], str], where: str) -> None:
    counts = Counter(sizes.values())
    if len(counts) > 1:
        first = {found: key for key, found in reversed(sizes.items())}
        listed = "; ".join(
            f"{count:,} of {height}x{width}, such as {describe(first[height, width])}"
            for (height, width), count in counts.most_common(5)
        )
        raise DataError(f"{where}: images of {len(counts)} sizes ({listed}); --size N makes them all NxN")
