"""From encoded bytes to uint8 RGB pixels, of H x W."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.data.image_header import image_format, image_size, is_whole

Where = str | Callable[[], str]

# Absent before OpenCV 4.10.
_COLOR_RGB: int | None = getattr(cv2, "IMREAD_COLOR_RGB", None)
_MAX_HEADER_BYTES = 4096
_START_OF_FRAME_BYTES = 9


def decode_image(
    encoded: bytes, size: tuple[int, int], where: Where, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG, PNG, BMP or WebP image; the pixels are those of `cv2.imdecode`.

    The size is read from the image's header first, so that a small file that unpacks to a huge image is never decoded.

    Args:
        encoded: the file's content.
        size: (H, W) that the image must have, in pixels.
        where: what to call the image in messages, or what tells it.
        out: uint8 (H, W, 3), where the pixels are to be put; a new array otherwise.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DataError: not an image, damaged, cut short, or of another size.
    """
    check_header(encoded, size, where)
    try:
        pixels = _decode(encoded)
    except cv2.error as error:
        raise DataError(f"{_told(where)}: the image cannot be decoded ({error.err}); replace or remove it") from error
    if pixels is None:
        raise DataError(f"{_told(where)}: the {image_format(encoded)} image is damaged; replace or remove it")
    if pixels.shape[:2] != size:
        raise _wrong_size(where, pixels.shape[:2], size)
    if out is None:
        return pixels
    out[...] = pixels
    return out


def check_header(encoded: bytes, size: tuple[int, int], where: Where) -> None:
    """Refuse what is no image, of another size than (H, W), or cut short, by its first and last bytes.

    Raises:
        DataError: as `decode_image`.
    """
    if _SEEN.is_as_before(encoded, size):
        return
    if not encoded:
        raise DataError(f"{_told(where)}: the image is empty; replace or remove it")
    kind = image_format(encoded)
    if kind is None:
        raise DataError(f"{_told(where)}: not a JPEG, PNG, BMP or WebP image (begins with {encoded[:8]!r})")
    found = image_size(encoded)
    if found is None:
        raise DataError(f"{_told(where)}: the {kind} image's header is damaged; replace or remove it")
    if found != size:
        raise _wrong_size(where, found, size)
    if not is_whole(encoded):
        raise DataError(f"{_told(where)}: the {kind} image is cut short; replace or remove it")
    _SEEN.note(encoded, size)


class _SeenHeader:
    """The last JPEG header that was found fit. The images of a set mostly share theirs, and comparing takes no time."""

    def __init__(self) -> None:
        self._header = b""
        self._size = (-1, -1)

    def is_as_before(self, encoded: bytes, size: tuple[int, int]) -> bool:
        """Whether all bytes up to the size are those of the noted image, and the end is there."""
        header = self._header
        if not header or size != self._size or not encoded.startswith(header):
            return False
        return encoded.rfind(b"\xff\xd9") > len(header)

    def note(self, encoded: bytes, size: tuple[int, int]) -> None:
        if encoded[:3] != b"\xff\xd8\xff":
            return
        start = _frame_start(encoded)
        if start is not None:
            self._header, self._size = encoded[: start + _START_OF_FRAME_BYTES], size


_SEEN = _SeenHeader()


def _frame_start(encoded: bytes) -> int | None:
    """Where the frame header of a JPEG with plain segments starts."""
    offset = 2
    while offset + _START_OF_FRAME_BYTES <= min(len(encoded), _MAX_HEADER_BYTES) and encoded[offset] == 0xFF:
        marker = encoded[offset + 1]
        if 0xC0 <= marker <= 0xC2:
            return offset
        if not 0xC4 <= marker <= 0xFE or marker == 0xDA:
            return None
        offset += 2 + int.from_bytes(encoded[offset + 2 : offset + 4], "big")
    return None


def _decode(encoded: bytes) -> npt.NDArray[np.uint8] | None:
    content = np.frombuffer(encoded, dtype=np.uint8)
    if _COLOR_RGB is not None:
        return cv2.imdecode(content, _COLOR_RGB)  # type: ignore[return-value]
    bgr = cv2.imdecode(content, cv2.IMREAD_COLOR)
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _told(where: Where) -> str:
    return where if isinstance(where, str) else where()


def _wrong_size(where: Where, found: tuple[int, ...], size: tuple[int, int]) -> DataError:
    return DataError(
        f"{_told(where)}: the image is {found[0]}x{found[1]} pixels (height x width), but {size[0]}x{size[1]} is "
        "needed; align or resize the faces first, or set backbone.input_size to theirs"
    )
