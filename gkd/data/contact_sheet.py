"""Contact sheets: many images in one picture, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.core.files import atomic_write

Pixels = npt.NDArray[np.uint8]

_GAP = 4
_CAPTION_HEIGHT = 14
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.35
_PAPER, _INK = 255, (40, 40, 40)


def draw_sheet(images: Sequence[Pixels], *, captions: Sequence[str] | None = None, columns: int = 8) -> Pixels:
    """Lay images out in rows, from left to right, each in the middle of a tile as large as the largest.

    Args:
        images: uint8 (h, w, 3) RGB each, of any sizes.
        captions: a line below each image, cut to its tile's width; the font has ASCII only.
        columns: images in a row.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ConfigError: no images, another number of captions, fewer than one column, or an image of another kind.
    """
    _check(images, captions, columns)
    tile_height = max(image.shape[0] for image in images)
    tile_width = max(image.shape[1] for image in images)
    row_height = tile_height + _GAP + (_CAPTION_HEIGHT if captions is not None else 0)
    columns = min(columns, len(images))
    num_rows = -(-len(images) // columns)
    shape = (num_rows * row_height + _GAP, columns * (tile_width + _GAP) + _GAP, 3)
    sheet = np.full(shape, _PAPER, dtype=np.uint8)
    for number, image in enumerate(images):
        top = _GAP + number // columns * row_height
        left = _GAP + number % columns * (tile_width + _GAP)
        _paste(sheet, image, top + (tile_height - image.shape[0]) // 2, left + (tile_width - image.shape[1]) // 2)
        if captions is not None:
            _write(
                sheet[top + tile_height : top + tile_height + _CAPTION_HEIGHT, left : left + tile_width],
                captions[number],
            )
    return sheet


def save_sheet(sheet: Pixels, path: str | Path) -> None:
    """Write a sheet as .png or .jpg.

    Raises:
        ConfigError: another suffix. DataError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"{path}: a contact sheet's name must end in .png or .jpg")
    try:
        is_encoded, encoded = cv2.imencode(path.suffix.lower(), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise DataError(
            f"{path}: a sheet of {sheet.shape[0]}x{sheet.shape[1]} cannot be written: {error.err}"
        ) from error
    if not is_encoded:
        raise DataError(f"{path}: a sheet of {sheet.shape[0]}x{sheet.shape[1]} pixels is too large; draw fewer images")
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(encoded.tobytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def _check(images: Sequence[Pixels], captions: Sequence[str] | None, columns: int) -> None:
    if not images:
        raise ConfigError("a contact sheet needs at least one image")
    if captions is not None and len(captions) != len(images):
        raise ConfigError(f"a contact sheet of {len(images)} images has {len(captions)} captions; give one for each")
    if columns < 1:
        raise ConfigError(f"a contact sheet needs at least 1 column, got {columns}")
    for number, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ConfigError(f"image {number} is {image.dtype} {image.shape}; uint8 (h, w, 3) RGB is needed")


def _paste(sheet: Pixels, image: Pixels, top: int, left: int) -> None:
    sheet[top : top + image.shape[0], left : left + image.shape[1]] = image


def _write(strip: Pixels, text: str) -> None:
    """Write into the strip of pixels, cutting what does not fit."""
    text = text.encode("ascii", "replace").decode("ascii")
    written = strip.copy()  # OpenCV draws into whole arrays only
    cv2.putText(written, text, (1, _CAPTION_HEIGHT - 4), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    strip[:] = written
