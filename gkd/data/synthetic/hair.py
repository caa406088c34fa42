"""The hair of the head: where it is, its strands, its colour."""

from __future__ import annotations

import cv2
import numpy as np

from gkd.data.synthetic import looks
from gkd.data.synthetic.canvas import DENSITY, LEFT, MAP_SIZE, TOP, Floats, Pixels, Points, smooth, to_map
from gkd.data.synthetic.identity import Identity

_MAP_X, _MAP_Y = np.meshgrid(
    (np.arange(MAP_SIZE, dtype=np.float32) + 0.5) / DENSITY + LEFT,
    (np.arange(MAP_SIZE, dtype=np.float32) + 0.5) / DENSITY + TOP,
)
_DOWN = np.array([[1, 0, 0], [0, 1, 4]], np.float32)
_CROWN = (56.0, -2.0)
_STRAND_NOISE = np.random.Generator(np.random.Philox(7)).random((64, 256), dtype=np.float32)


def grow_hair(identity: Identity) -> tuple[Floats, Floats]:
    """Cover (0 to 1) and strands (-1 to 1) of the hair on the colour map."""
    curl = identity.hair_curl
    dx, dy = _MAP_X - np.float32(_CROWN[0] + 0.6 * identity.hair_part), _MAP_Y - np.float32(_CROWN[1])
    radius = cv2.magnitude(dx, dy)
    turn = cv2.phase(dx, dy)
    # Strands run outwards from the crown, and wave with curl.
    across = turn * np.float32(26.0) + np.float32(2.5 * curl) * np.sin(radius * np.float32(0.16 + 0.3 * curl))
    along = radius * np.float32(0.05 + 0.42 * curl * curl)
    strands = cv2.remap(_STRAND_NOISE, across % np.float32(250), along % np.float32(60), cv2.INTER_LINEAR)
    mask = np.zeros((MAP_SIZE, MAP_SIZE), np.uint8)
    cv2.fillPoly(mask, [to_map(hair_outline(identity))], (255.0,), cv2.LINE_AA, 4)
    cv2.fillPoly(mask, [to_map(_face_opening(identity))], (0.0,), cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(mask, (0, 0), 2.2).astype(np.float32) * np.float32(1 / 255)
    strands = strands * 2 - 1
    # The strands fray the edge.
    cover = np.clip((soft - 0.5 + strands * np.float32(0.2)) * 5 + np.float32(0.5), 0, 1)
    return np.asarray(cover * np.minimum(soft * 4, 1), np.float32), np.asarray(strands, np.float32)


def paint_hair(colours: Pixels, identity: Identity, mask: Floats, strands: Floats) -> None:
    """Paint the hair over the colour map, and its shadow on the face."""
    shadow = cv2.GaussianBlur(cv2.warpAffine(mask, _DOWN, mask.shape[::-1]), (0, 0), 4.0)
    base = np.array(looks.hair(identity), np.float32)
    face = colours[..., :3] * (1 - np.float32(0.38) * shadow)[..., None]
    locks = base * (1 + np.float32(0.42) * strands + np.float32(0.1))[..., None] + np.float32(5)
    colours[..., :3] = np.clip(face + (locks - face) * mask[..., None], 0, 255)
    np.maximum(colours[..., 3], (mask * 255).astype(np.uint8), out=colours[..., 3])


def hair_outline(identity: Identity) -> Points:
    """The outer edge of the hair, a closed curve."""
    side, length = identity.hair_side, looks.hair_length(identity)
    width = identity.cheek_width + (side + 5.0 if length > 64 else 0.4 * side)
    right = [
        (24.0, identity.skull_y - identity.hair_top * 0.85),
        (identity.temple_width + side * 0.8, 10.0),
        (width, 40.0),
        (width + 0.3 * side, min(length, 60.0)),
    ]
    if length > 64:
        right += [(width + 0.4 * side, 0.5 * (60 + length)), (width - 2.0, length), (8.0, length - 4.0)]
    else:
        right += [(width - 8.0, length + 2.0)]
    left = [(-x, y) for x, y in reversed(right)]
    return smooth([(56 + x, y) for x, y in [(0.0, identity.skull_y - identity.hair_top), *right, *left]])


def _face_opening(identity: Identity) -> Points:
    """The hairline and the sides: what the hair leaves free."""
    length = looks.hair_length(identity)
    line, part = identity.hair_line, identity.hair_part
    overlap = 3.5 if length > 64 else 1.5
    if looks.is_bald(identity):
        line -= 40.0
    low, dip = (30.0, 6.0) if looks.has_bangs(identity) else (line, identity.hair_dip)
    low = min(low, 34.0)
    edge = identity.cheek_width - overlap
    temple = identity.hair_inset if not looks.has_bangs(identity) else identity.temple_width - 3.0
    right = [
        (temple * 0.55 + part * 0.3, low + 0.2 * dip),
        (temple, low + 9.0),
        (edge - 1.0, max(line + 28.0, 38.0)),
        (edge, 58.0),
    ]
    left = [
        (-temple * 0.55 + part * 0.3, low + 0.4 * dip),
        (-temple, low + 9.0),
        (-edge + 1.0, max(line + 28.0, 38.0)),
        (-edge, 58.0),
    ]
    bottom = [(edge, 100.0), (edge - 3.0, 150.0), (-edge + 3.0, 150.0), (-edge, 100.0)]
    return smooth([(56 + x, y) for x, y in [(part, low - dip), *right, *bottom, *reversed(left)]])
