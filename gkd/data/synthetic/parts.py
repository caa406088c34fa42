"""The features that move: eyes, brows and mouth, painted on the colour map for each picture."""

from __future__ import annotations

import numpy as np

from gkd.data.synthetic import looks
from gkd.data.synthetic.canvas import Canvas, Points, mix, shade, smooth
from gkd.data.synthetic.identity import Identity, Shot

_TEETH = (232.0, 226.0, 212.0)
_THROAT = (58.0, 16.0, 20.0)
_DARK = (24.0, 16.0, 14.0)


def paint_parts(canvas: Canvas, identity: Identity, shot: Shot) -> None:
    """Paint the moving features with the expression of one picture."""
    for side in (-1.0, 1.0):
        _paint_eye(canvas, identity, shot, side)
        _paint_brow(canvas, identity, shot, side)
    _paint_mouth(canvas, identity, shot)


def _eye_curves(identity: Identity, openness: float, side: float) -> tuple[Points, Points]:
    """The upper and the lower edge of the eye, from the inner to the outer corner."""
    half, tilt, peak = identity.eye_width / 2, identity.eye_tilt, identity.eye_peak * identity.eye_width / 2
    up, down = 0.62 * identity.eye_height * openness, 0.38 * identity.eye_height * (0.6 + 0.4 * openness)
    upper = [
        (-half, tilt + 0.6),
        (-0.5 * half + 0.5 * peak, -0.72 * up),
        (peak, -up),
        (0.6 * half, -0.62 * up),
        (half, -tilt),
    ]
    lower = [
        (-half, tilt + 0.6),
        (-0.4 * half, 0.8 * down),
        (0.3 * half, down),
        (0.75 * half, 0.5 * down),
        (half, -tilt),
    ]
    centre = np.array([56 + side * identity.eye_gap / 2, identity.eye_y])
    stretch = np.array([side, 1.0])
    return smooth(upper, False) * stretch + centre, smooth(lower, False) * stretch + centre


def _paint_eye(canvas: Canvas, identity: Identity, shot: Shot, side: float) -> None:
    openness = float(np.clip(shot.eye_open - 0.15 * max(shot.smile, 0.0), 0.3, 1.3))
    upper, lower = _eye_curves(identity, openness, side)
    inside = np.concatenate([upper, lower[::-1]])
    _paint_lid(canvas, identity, upper, side)
    with canvas.clipped_to(inside):
        canvas.fill(inside, mix((226, 220, 214), looks.skin(identity), 0.12))
        _paint_iris(canvas, identity, shot, side)
        canvas.stroke(upper + (0, 0.5), _DARK, 2.2, 0.5, 0.8)
        canvas.stroke(lower, looks.crease(identity), 0.7, 0.4, 0.3)
    lash = mix(_DARK, looks.hair(identity), 0.3)
    canvas.stroke(upper, lash, 0.55 + 0.5 * identity.lashes, 0.85)
    canvas.stroke(lower[6:], lash, 0.6, 0.2 + 0.2 * identity.lashes)


def _paint_lid(canvas: Canvas, identity: Identity, upper: Points, side: float) -> None:
    fold = looks.crease(identity)
    if identity.lid_crease > 0.3:
        rise = 1.2 + identity.lid_crease
        arch = np.sin(np.linspace(0.12, 0.95, len(upper)) * np.pi)[:, None] * np.array([0.0, -rise])
        canvas.stroke(upper + arch, fold, 0.9, 0.55, 0.35)
    if identity.lid_hood > 0.5:
        hood = upper[len(upper) // 2 :] + (side * 0.5, -0.8)
        canvas.stroke(hood, shade(looks.skin(identity), 0.78), 1.6 * identity.lid_hood, 0.6, 0.6)


def _paint_iris(canvas: Canvas, identity: Identity, shot: Shot, side: float) -> None:
    colour = looks.iris(identity)
    x = 56 + side * identity.eye_gap / 2 + shot.gaze_x
    y = identity.eye_y - 0.6 + shot.gaze_y
    radius = 3.45
    canvas.spot((x, y), (radius, radius), shade(colour, 0.45))
    canvas.spot((x, y), (radius - 0.7, radius - 0.7), colour)
    canvas.spot((x, y + 1.0), (radius - 1.6, radius - 2.2), shade(colour, 1.5), 0.6, 0.4)
    canvas.spot((x, y), (1.5, 1.5), (10, 8, 8))
    glint = 1.3 * float(np.sign(shot.light_side))
    canvas.spot((x + glint, y - 1.3), (0.75, 0.75), (250, 250, 250), 0.95)


def _paint_brow(canvas: Canvas, identity: Identity, shot: Shot, side: float) -> None:
    inner = identity.eye_gap / 2 - 10.5 + identity.brow_gap
    y = identity.eye_y - identity.brow_y - shot.brow_raise + 0.35 * side * identity.asymmetry
    length, weight, arch = identity.brow_length, identity.brow_weight, identity.brow_arch
    along = np.array([0.0, 0.22, 0.45, 0.65, 0.85, 1.0])
    rise = np.array([0.0, 0.35, 0.75, 1.0, 0.7, 0.1]) * -arch - along * identity.brow_slope
    thick = weight * np.array([0.75, 1.0, 0.95, 0.85 - 0.2 * identity.brow_taper, 1 - 0.7 * identity.brow_taper, 0.1])
    x = 56 + side * (inner + along * length)
    top = np.stack([x, y + rise - thick / 2], axis=1)
    bottom = np.stack([x, y + rise + thick / 2], axis=1)
    colour = mix(shade(looks.hair(identity), 0.8), looks.crease(identity), 0.3)
    shape = np.concatenate([top, bottom[::-1]])
    curve = smooth([(float(px), float(py)) for px, py in shape])
    canvas.fill(curve, colour, 0.8, 0.6)


def _paint_mouth(canvas: Canvas, identity: Identity, shot: Shot) -> None:
    smile, gap = shot.smile, 7.0 * max(shot.mouth_open, 0.0) ** 1.3
    half = identity.mouth_width / 2 * (1 + 0.13 * smile)
    y, skew = identity.mouth_y, 0.5 * identity.asymmetry
    corner = y - 2.2 * smile + identity.lip_corner
    top, bow, low = identity.upper_lip, identity.cupid_bow, identity.lower_lip
    left, right = (56 - half, corner - skew), (56 + half, corner + skew)
    line_upper = [left, (56 - 0.5 * half, y - 0.2), (56.0, y + 0.5), (56 + 0.5 * half, y - 0.2), right]
    line_lower = [
        left,
        (56 - 0.5 * half, y + 0.9 * gap),
        (56.0, y + 0.5 + gap),
        (56 + 0.5 * half, y + 0.9 * gap),
        right,
    ]
    rim_top = [
        left,
        (56 - 0.45 * half, y - 0.75 * top),
        (56 - 3.4, y - top),
        (56.0, y - top + bow),
        (56 + 3.4, y - top),
        (56 + 0.45 * half, y - 0.75 * top),
        right,
    ]
    drop = y + gap + low
    rim_low = [left, (56 - 0.55 * half, drop - 0.25 * low), (56.0, drop), (56 + 0.55 * half, drop - 0.25 * low), right]
    colour = looks.lips(identity)
    upper, lower = smooth(line_upper, False), smooth(line_lower, False)
    canvas.fill(np.concatenate([smooth(rim_top, False), upper[::-1]]), shade(colour, 0.82), 0.9, 0.3)
    canvas.fill(np.concatenate([lower, smooth(rim_low, False)[::-1]]), colour, 0.9, 0.35)
    canvas.spot((56.0, drop - 0.55 * low), (0.4 * half, 0.2 * low), shade(colour, 1.22), 0.55, 0.7)
    canvas.spot((56.0, drop + 2.0), (0.5 * half, 1.3), looks.crease(identity), 0.3, 1.2)
    _paint_inside(canvas, np.concatenate([upper, lower[::-1]]), gap, y, half)
    line = mix(shade(colour, 0.4), _THROAT, 0.4)
    canvas.stroke(upper, line, 0.9, 0.85, 0.25)
    for x, corner_y in (left, right):
        canvas.spot((x, corner_y), (1.2, 1.0), looks.crease(identity), 0.5, 0.6)


def _paint_inside(canvas: Canvas, inside: Points, gap: float, y: float, half: float) -> None:
    if gap < 0.8:
        return
    with canvas.clipped_to(inside):
        canvas.fill(inside, _THROAT)
        canvas.spot((56.0, y), (0.8 * half, min(0.65 * gap, 3.2)), _TEETH)
        for tooth in range(-2, 3):
            x = 56.0 + 3.8 * tooth
            canvas.stroke(np.array([(x, y - 1.0), (x, y + 4.0)]), (150, 136, 122), 0.5, 0.35)
