"""The lasting part of a head: its relief, its skin and its hair, without features that move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from gkd.data.synthetic import looks
from gkd.data.synthetic.canvas import MAP_SIZE, Canvas, Floats, Pixels, Points, smooth
from gkd.data.synthetic.hair import grow_hair, paint_hair
from gkd.data.synthetic.identity import Identity, draw_identity
from gkd.data.synthetic.relief import build_relief, slopes
from gkd.data.synthetic.skin import paint_skin


@dataclass(frozen=True)
class Surface:
    """One person's head, flat: drawn once, posed and lit many times.

    Attributes:
        identity: the numbers behind it.
        colours: uint8 (MAP_SIZE, MAP_SIZE, 4), RGB and cover.
        shape: float32 (RELIEF_SIZE, RELIEF_SIZE, 4): the x and y slopes, cavity shade, gloss.
        depth: float32 (RELIEF_SIZE, RELIEF_SIZE), smoothed, pixels towards the viewer.
    """

    identity: Identity
    colours: Pixels
    shape: Floats
    depth: Floats


@lru_cache(maxsize=16)
def build_surface(seed: int, number: int) -> Surface:
    """The head of person `number` of `seed`."""
    identity = draw_identity(seed, number)
    outline = head_outline(identity)
    hair_mask, strands = grow_hair(identity)
    colours = np.empty((MAP_SIZE, MAP_SIZE, 4), np.uint8)
    colours[...] = (*(int(c) for c in looks.skin(identity)), 0)
    canvas = Canvas(colours)
    _paint_behind(canvas, identity)
    canvas.fill(outline, looks.skin(identity))
    paint_skin(canvas, identity, seed, number)
    paint_hair(colours, identity, hair_mask, strands)
    relief = build_relief(identity, outline, hair_mask, strands)
    depth = cv2.GaussianBlur(np.maximum(relief, 18), (0, 0), 4.5)
    return Surface(identity, colours, slopes(relief, hair_mask), np.asarray(depth, np.float32))


def head_outline(identity: Identity) -> Points:
    """The outline of skull and jaw, a closed curve."""
    skew = identity.asymmetry
    right = [
        (26.0, identity.skull_y + 6),
        (identity.temple_width, 24.0),
        (identity.cheek_width, 54.0),
        (identity.cheek_width * 0.55 + identity.jaw_width * 0.45, 76.0),
        (identity.jaw_width, 95.0),
        (identity.chin_width + 0.25 * (identity.jaw_width - identity.chin_width), identity.chin_y - 6.0),
        (identity.chin_width * 0.55, identity.chin_y - 0.6),
    ]
    left = [(-x + 0.5 * skew, y) for x, y in reversed(right)]
    points = [(0.0, identity.skull_y), *right, (skew, identity.chin_y), *left]
    return smooth([(56 + x, y) for x, y in points])


def _paint_behind(canvas: Canvas, identity: Identity) -> None:
    skin = looks.skin(identity)
    neck_width = 0.5 * identity.jaw_width + 11.0
    dark = (skin[0] * 0.7, skin[1] * 0.62, skin[2] * 0.58)
    canvas.fill(
        smooth([(56 - neck_width, 84.0), (56 + neck_width, 84.0), (60 + neck_width, 140.0), (52 - neck_width, 140.0)]),
        dark,
    )
    for side in (-1.0, 1.0):
        x = 56 + side * (identity.cheek_width + identity.ear_out * 0.5 - 1.0)
        canvas.spot((x, 60.0), (2.5 + identity.ear_out, identity.ear_size), skin, turn=side * 0.16)
        canvas.spot(
            (x + side, 60.0), (1.0 + identity.ear_out * 0.4, identity.ear_size * 0.6), looks.crease(identity), 0.5, 1.0
        )
