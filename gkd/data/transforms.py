"""From encoded bytes to uint8 RGB pixels, and the mirror image.

N images of H x W pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.core.errors import DataError
from gkd.data.image_header import image_format, image_size, is_whole


def decode_image(
    encoded: bytes, size: tuple[int, int], where: str, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Decode a JPEG, PNG, BMP or WebP image.

    The size is read from the image's header first, so that a small file that unpacks to a huge image is never decoded.

    Args:
        encoded: the file's content.
        size: (H, W) that the image must have, in pixels.
        where: what to call the image in messages.
        out: uint8 (H, W, 3), where the pixels are to be put; a new array otherwise.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        DataError: not an image, damaged, cut short, or of another size.
    """
    _check_header(encoded, size, where)
    try:
        bgr = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError(f"{where}: the image cannot be decoded ({error.err}); replace or remove it") from error
    if bgr is None:
        raise DataError(f"{where}: the {image_format(encoded)} image is damaged; replace or remove it")
    if bgr.shape[:2] != size:
        raise _wrong_size(where, bgr.shape[:2], size)
    if out is None:
        out = np.empty((*size, 3), dtype=np.uint8)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=out))


def flip_on_device(images: Tensor, is_flipped: Tensor) -> Tensor:
    """Mirror left to right the images (N, C, H, W) where `is_flipped` (N,) says so; `images` itself is unchanged."""
    return torch.where(is_flipped.view(-1, 1, 1, 1), images.flip(-1), images)


def _check_header(encoded: bytes, size: tuple[int, int], where: str) -> None:
    if not encoded:
        raise DataError(f"{where}: the image is empty; replace or remove it")
    if image_format(encoded) is None:
        raise DataError(f"{where}: not a JPEG, PNG, BMP or WebP image (begins with {encoded[:8]!r})")
    found = image_size(encoded)
    if found is None:
        raise DataError(f"{where}: the {image_format(encoded)} image's header is damaged; replace or remove it")
    if found != size:
        raise _wrong_size(where, found, size)
    if not is_whole(encoded):
        raise DataError(f"{where}: the {image_format(encoded)} image is cut short; replace or remove it")


def _wrong_size(where: str, found: tuple[int, int], size: tuple[int, int]) -> DataError:
    return DataError(
        f"{where}: the image is {found[0]}x{found[1]} pixels (height x width), but {size[0]}x{size[1]} is needed; "
        "align or resize the faces first, or set the size to theirs"
    )
