"""What a person wears in a picture: glasses, sunglasses, a mask, a hat."""

from __future__ import annotations

import numpy as np

from gkd.data.synthetic import looks
from gkd.data.synthetic.canvas import Canvas, Colour, Points, ellipse, shade, smooth
from gkd.data.synthetic.identity import Identity, Shot

_SUNGLASSES, _MASK, _HAT = 0.07, 0.13, 0.28  # upper ends of each one's share of `wear_lot`
_GLASSES_HABIT = 0.6


def any_colour(lot: float, brightness: float) -> Colour:
    """A colour of hue `lot`, moderately saturated."""
    phases = (0.0, 0.33, 0.67)
    red, green, blue = (brightness * (140 + 55 * float(np.cos(6.283 * (lot + phase)))) for phase in phases)
    return (red, green, blue)


def paint_wear(canvas: Canvas, identity: Identity, shot: Shot) -> None:
    """Paint what is worn in this picture; most pictures show nothing but a wearer's own glasses."""
    colour = any_colour(shot.wear_colour, shot.wear_shade)
    if shot.wear_lot < _SUNGLASSES:
        _paint_glasses(canvas, identity, shade(colour, 0.4), 1.6, (20, 18, 20), 0.93)
    elif looks.wears_glasses(identity) and shot.glasses_lot < _GLASSES_HABIT:
        _paint_glasses(canvas, identity, looks.frames(identity), identity.glasses_width, (235, 240, 245), 0.1)
    if _SUNGLASSES <= shot.wear_lot < _MASK:
        _paint_mask(canvas, identity, colour)
    elif _MASK <= shot.wear_lot < _HAT:
        _paint_hat(canvas, identity, colour)


def _lens(identity: Identity, side: float) -> Points:
    centre = (56 + side * identity.eye_gap / 2, identity.eye_y + 1.5)
    if identity.glasses_shape < 0.4:
        return ellipse(centre, (10.5, 9.5))
    width, height, drop = 12.5, 5.0 + 5.0 * identity.glasses_shape, 2.5 * (identity.glasses_shape - 0.6)
    box = [
        (-width + 1.5, -height),
        (width - 1.0, -height),
        (width, drop),
        (width - 3.0, height),
        (-width + 3.5, height),
        (-width, drop),
    ]
    return smooth([(centre[0] + side * x, centre[1] + y) for x, y in box])


def _paint_glasses(
    canvas: Canvas, identity: Identity, frame: Colour, width: float, tint: Colour, opacity: float
) -> None:
    y = identity.eye_y
    for side in (-1.0, 1.0):
        lens = _lens(identity, side)
        canvas.fill(lens, tint, opacity)
        canvas.stroke(np.concatenate([lens, lens[:1]]) + (0, 1.2), looks.crease(identity), width, 0.25, 0.8)
        canvas.stroke(np.concatenate([lens, lens[:1]]), frame, width)
        outer = float(lens[:, 0].max() if side > 0 else lens[:, 0].min())
        canvas.stroke(np.array([(outer, y), (56 + side * (identity.cheek_width + 1), y - 1.0)]), frame, width)
    gap = identity.eye_gap / 2 - 10.5
    canvas.stroke(smooth([(56 - gap, y), (56.0, y - 1.6), (56 + gap, y)], False), frame, width)


def _paint_mask(canvas: Canvas, identity: Identity, colour: Colour) -> None:
    cheek, jaw = identity.cheek_width, identity.jaw_width
    right = [(12.0, 65.0), (cheek - 6, 73.0), (jaw + 1, 96.0), (14.0, identity.chin_y + 3)]
    left = [(-x, y) for x, y in reversed(right)]
    canvas.fill(smooth([(56 + x, y) for x, y in [(0.0, 62.0), *right, *left]]), colour)
    for row in (78.0, 87.0, 96.0):
        wave = [(56 - 0.85 * jaw, row), (56.0, row + 3), (56 + 0.85 * jaw, row)]
        canvas.stroke(smooth(wave, False), shade(colour, 0.7), 1.0, 0.6, 0.5)
    for side in (-1.0, 1.0):
        canvas.stroke(
            np.array([(56 + side * (cheek - 7), 73.0), (56 + side * (cheek + 2), 58.0)]), shade(colour, 1.1), 1.0
        )


def _paint_hat(canvas: Canvas, identity: Identity, colour: Colour) -> None:
    width = identity.temple_width + 6.0
    top = identity.skull_y - 16.0
    right = [(0.75 * width, top + 8), (width, 8.0), (width + 1.0, 22.0)]
    left = [(-x, y) for x, y in reversed(right)]
    canvas.fill(smooth([(56 + x, y + 5) for x, y in [(0.0, 20.0), (width, 26.0)]], False), (0, 0, 0), 0.4, 2.0)
    canvas.fill(smooth([(56 + x, y) for x, y in [(0.0, top), *right, (0.0, 17.0), *left]]), colour)
    band = [(-width - 0.5, 20.0), (0.0, 15.5), (width + 0.5, 20.0)]
    canvas.stroke(smooth([(56 + x, y) for x, y in band], False), shade(colour, 0.6), 4.0, 0.9, 0.4)
