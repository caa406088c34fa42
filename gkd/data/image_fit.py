"""Checking that an encoded image fits a set of faces, and resizing one that does not."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from gkd.core.errors import DataError
from gkd.data.image_folder import FaceFolder
from gkd.data.image_header import image_format, image_size, is_whole
from gkd.data.transforms import decode_image

Size = tuple[int, int]

MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class ImageFit:
    """Reads images of a folder and makes them fit; can be sent to another process.

    Attributes:
        size: (H, W) in pixels that images must have.
        is_resizing: whether images of another size are resized; else they are refused.
        quality: of a resized image's JPEG.
        is_decoding: whether images that keep their bytes are decoded as a check.
    """

    faces: FaceFolder
    size: Size
    is_resizing: bool
    quality: int
    is_decoding: bool

    def __call__(self, index: int) -> tuple[bytes, str]:
        """The image and "", or nothing and what is wrong with it."""
        try:
            return self._prepare(index), ""
        except DataError as error:
            return b"", str(error)

    def _prepare(self, index: int) -> bytes:
        encoded, where = self.faces[index][0], self.faces.describe(index)
        size = size_of(encoded, where)
        if size == self.size:
            if self.is_decoding:
                decode_image(encoded, size, where)
            return encoded
        if not self.is_resizing:
            raise DataError(
                f"{where}: the image is {size[0]}x{size[1]} pixels (height x width), but the others are "
                f"{self.size[0]}x{self.size[1]}; align the faces first, or give --size"
            )
        return _resized(encoded, size, self.size, self.quality, where)


def size_of(encoded: bytes, where: str) -> Size:
    """(H, W) in pixels of a whole image.

    Raises:
        DataError: an unknown format, a damaged header, or the end is missing.
    """
    kind, size = image_format(encoded), image_size(encoded)
    if kind is None:
        raise DataError(f"{where}: not a JPEG, PNG, BMP or WebP image (begins with {encoded[:8]!r})")
    if size is None or min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{where}: the {kind} image's header is damaged (size {size}); replace or remove it")
    if not is_whole(encoded):
        raise DataError(f"{where}: the {kind} image is cut short; replace or remove it")
    return size


def _resized(encoded: bytes, size: Size, wanted: Size, quality: int, where: str) -> bytes:
    try:
        pixels = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError(f"{where}: the image cannot be decoded ({error.err}); replace or remove it") from error
    if pixels is None:
        raise DataError(f"{where}: the {image_format(encoded)} image is damaged; replace or remove it")
    # Averaging over areas keeps fine patterns from turning into coarse ones; it does not enlarge well.
    is_smaller = wanted[0] <= size[0] and wanted[1] <= size[1]
    interpolation = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
    small = cv2.resize(pixels, (wanted[1], wanted[0]), interpolation=interpolation)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
