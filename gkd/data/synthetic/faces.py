"""Faces by number: one picture, a sheet of many."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from gkd.core.errors import ConfigError
from gkd.data.synthetic.canvas import Pixels
from gkd.data.synthetic.identity import SHOT_NOISE_STREAM, Shot, draw_shot, generator
from gkd.data.synthetic.photo import FRAME, take_photo
from gkd.data.synthetic.surface import build_surface

VERSION = 1  # raised whenever the pictures of a seed change


def draw_face(seed: int, identity: int, image: int, size: int = FRAME, difficulty: float = 1.0) -> Pixels:
    """Picture number `image` of person number `identity`: a function of these numbers alone.

    Args:
        size: side of the picture in pixels; it is made at 112 and resized.
        difficulty: how far pose, light, expression and camera go; 0 is a plain frontal portrait.

    Returns:
        uint8 (size, size, 3), RGB.

    Raises:
        ConfigError: a number outside its range.
    """
    return _draw(seed, identity, image, size, difficulty)[0]


def encode_face(seed: int, identity: int, image: int, size: int = FRAME, difficulty: float = 1.0) -> bytes:
    """The picture of `draw_face` as JPEG, at the quality that belongs to it."""
    picture, shot = _draw(seed, identity, image, size, difficulty)
    quality = round(min(max(shot.jpeg_quality, 30.0), 98.0))
    _, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return encoded.tobytes()


def contact_sheet(seed: int, identities: Iterable[int], images: Iterable[int], size: int = FRAME) -> Pixels:
    """A row of pictures for each identity, uint8 RGB."""
    columns = list(images)
    rows = [
        np.concatenate([draw_face(seed, person, image, size) for image in columns], axis=1) for person in identities
    ]
    return np.concatenate(rows, axis=0)


def check_drawing(size: int, difficulty: float) -> None:
    """Refuse a size or a difficulty that cannot be drawn.

    Raises:
        ConfigError: the size is outside 16 to 1024, or the difficulty outside 0 to 1.5.
    """
    if not 16 <= size <= 1024:
        raise ConfigError(f"synthetic faces: size must lie between 16 and 1024 pixels, got {size}")
    if not 0.0 <= difficulty <= 1.5:
        raise ConfigError(f"synthetic faces: difficulty must lie between 0 and 1.5, got {difficulty}")


def _draw(seed: int, identity: int, image: int, size: int, difficulty: float) -> tuple[Pixels, Shot]:
    check_drawing(size, difficulty)
    shot = draw_shot(seed, identity, image, difficulty)
    noise = generator(seed, SHOT_NOISE_STREAM, identity, image)
    picture = take_photo(build_surface(seed, identity), shot, noise)
    if size != FRAME:
        way = cv2.INTER_AREA if size < FRAME else cv2.INTER_CUBIC
        picture = np.asarray(cv2.resize(picture, (size, size), interpolation=way), np.uint8)
    return picture, shot
