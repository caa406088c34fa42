"""Pictures of training images as the networks see them, with a few words under each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

# A tile is at least so wide that its words fit.
_MIN_WIDTH = 112
_LINE_HEIGHT = 13
_GAP = 4
_FONT_SCALE = 0.36


def picture_of(images: Sequence[Pixels], captions: Sequence[Sequence[str]]) -> Pixels:
    """One picture (H, W, 3) of `images`, all (h, w, 3) RGB of one size, with each one's lines of text under it.

    They stand in about as many columns as rows. Small ones are enlarged by a whole factor, without smoothing.
    """
    tiles = [_tile(image, lines) for image, lines in zip(images, captions, strict=True)]
    height, width = tiles[0].shape[0] + _GAP, tiles[0].shape[1] + _GAP
    num_columns = math.ceil(math.sqrt(len(tiles)))
    num_rows = -(-len(tiles) // num_columns)
    picture = np.full((num_rows * height - _GAP, num_columns * width - _GAP, 3), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // num_columns * height, index % num_columns * width
        picture[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return picture


def _tile(image: Pixels, lines: Sequence[str]) -> Pixels:
    factor = -(-_MIN_WIDTH // image.shape[1])
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    words = np.full((_LINE_HEIGHT * len(lines) + 3, enlarged.shape[1], 3), 255, dtype=np.uint8)
    for index, line in enumerate(lines):
        place = (1, _LINE_HEIGHT * (index + 1) - 2)
        cv2.putText(words, line, place, cv2.FONT_HERSHEY_SIMPLEX, _FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([enlarged, words])
