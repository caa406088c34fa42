"""What is on the skin: tone, folds, nostrils, marks, wrinkles and facial hair."""

from __future__ import annotations

import numpy as np

from gkd.data.synthetic import looks
from gkd.data.synthetic.canvas import MAP_SIZE, Canvas, mix, shade, smooth
from gkd.data.synthetic.identity import MARK_STREAM, Identity, generator

_NUM_FRECKLES = 60
_GRAIN = np.random.Generator(np.random.Philox(11)).random((MAP_SIZE + 256, MAP_SIZE + 256), dtype=np.float32)


def paint_skin(canvas: Canvas, identity: Identity, seed: int, number: int) -> None:
    """Paint everything that is fixed on the skin, hair of the head excepted."""
    marks = generator(seed, MARK_STREAM, number)
    _paint_tone(canvas, identity)
    _paint_nose(canvas, identity)
    _paint_age(canvas, identity)
    _paint_marks(canvas, identity, marks)
    _paint_beard(canvas, identity, marks)
    _roughen(canvas, marks)


def _paint_tone(canvas: Canvas, identity: Identity) -> None:
    rosy = mix(looks.skin(identity), (205, 84, 76), 0.55)
    for side in (-1.0, 1.0):
        canvas.spot((56 + side * 25, 73.0), (9.0, 7.0), rosy, identity.blush, 5.0)
        x = 56 + side * identity.eye_gap / 2
        canvas.spot((x, identity.eye_y - 1.0), (11.0, 6.5), looks.crease(identity), 0.14, 3.5)
        canvas.spot((x - side * 1.0, identity.eye_y + 7.5), (6.5, 2.5), looks.crease(identity), identity.eye_bags, 1.6)
    canvas.spot((56.0, identity.nose_y), (5.0, 4.0), rosy, identity.blush * 0.8, 2.5)


def _paint_nose(canvas: Canvas, identity: Identity) -> None:
    fold = looks.crease(identity)
    y = identity.nose_y + 3.2
    for side in (-1.0, 1.0):
        x = 56 + side * identity.nose_wing * 0.5
        canvas.spot(
            (x, y), (1.1 + identity.nostril, 0.55 + 0.45 * identity.nostril), shade(fold, 0.5), 0.85, 0.4, -0.25 * side
        )
        wing = [(0.98, -4.0), (1.12, -1.0), (1.0, 1.6), (0.82, 2.0)]
        line = [(56 + side * identity.nose_wing * reach, y + down - 1.2) for reach, down in wing]
        canvas.stroke(smooth(line, False), fold, 0.9, 0.5, 0.6)
    canvas.spot((56.0, y + 1.0), (identity.nose_wing * 0.6, 1.2), fold, 0.2, 1.0)


def _paint_age(canvas: Canvas, identity: Identity) -> None:
    fold, age = looks.crease(identity), identity.age
    reach = identity.mouth_width / 2
    for side in (-1.0, 1.0):
        line = [(identity.nose_wing + 2, identity.nose_y + 1), (reach + 3.5, 84.0), (reach + 4.5, identity.mouth_y + 1)]
        canvas.stroke(smooth([(56 + side * x, y) for x, y in line], False), fold, 1.6, 0.12 + 0.3 * age, 0.9)
        if age > 0.55:
            edge = identity.eye_gap / 2 + identity.eye_width / 2
            for rise in (-3.0, 0.0, 3.0):
                ends = [(edge + 2.5, identity.eye_y + 0.4 * rise), (edge + 7.5, identity.eye_y + rise)]
                canvas.stroke(np.array([(56 + side * x, y) for x, y in ends]), fold, 0.8, 0.9 * (age - 0.5), 0.4)
    if age > 0.5:
        for row in range(3):
            y = 19.0 + 5.5 * row
            wave = [(36.0, y + 1), (48.0, y - 0.6), (64.0, y - 0.4), (76.0, y + 1)]
            canvas.stroke(smooth(wave, False), fold, 1.0, 0.4 * (age - 0.45), 0.7)


def _paint_marks(canvas: Canvas, identity: Identity, marks: np.random.Generator) -> None:
    places = marks.random((_NUM_FRECKLES + 8, 4)).tolist()
    brown = mix(looks.skin(identity), (110, 56, 30), 0.6)
    if identity.freckles > 0 and identity.melanin < 0.6:
        for x, y, size, _ in places[: int(_NUM_FRECKLES * identity.freckles)]:
            canvas.spot((28 + 56 * x, 57 + 24 * y), (0.4 + 0.5 * size,) * 2, brown, 0.5, 0.25)
    for x, y, size, dark in places[-8 : -8 + int(identity.num_moles)]:
        radius = 0.6 + 0.9 * size
        canvas.spot((24 + 64 * x, 24 + 84 * y), (radius, radius), (62 + 30 * dark, 36, 28), 0.9, 0.25)
    if identity.scar_lot < 0.1:
        x, y, turn, length = places[-1]
        start = np.array([30 + 52 * x, 20 + 70 * y])
        end = start + (6 + 8 * length) * np.array([np.cos(3 * turn), np.sin(3 * turn)])
        canvas.stroke(np.stack([start, end]), shade(looks.skin(identity), 1.18), 1.4, 0.6, 0.3)


def _paint_beard(canvas: Canvas, identity: Identity, marks: np.random.Generator) -> None:
    kind = looks.beard(identity)
    if kind == "none":
        return
    colour = mix(looks.hair(identity), looks.crease(identity), 0.25)
    weight = identity.beard_weight * (0.45 if kind == "stubble" else 0.95)
    half, mouth, chin = identity.mouth_width / 2, identity.mouth_y, identity.chin_y
    before = canvas.pixels[..., :3].copy()
    if kind in ("stubble", "full"):
        jaw, cheek = identity.jaw_width, identity.cheek_width
        side = [(cheek + 1, 60.0), (cheek - 5, 74.0), (half + 8, mouth - 7), (half + 3, mouth - 8), (7.0, mouth - 10)]
        rim = [
            (0.0, mouth - 8),
            *reversed(side),
            (jaw + 4, mouth + 8),
            (identity.chin_width + 4, chin),
            (0.0, chin + 3),
        ]
        left = [(-x, y) for x, y in reversed(rim[1:-1])]
        canvas.fill(smooth([(56 + x, y) for x, y in rim + left]), colour, weight, 1.6)
    if kind in ("moustache", "goatee"):
        top = mouth - identity.upper_lip
        lip = [
            (0.0, top - 5.5),
            (8.0, top - 5.5),
            (half + 2, mouth),
            (half, mouth + 2),
            (6.0, top - 0.5),
            (0.0, top - 1.0),
        ]
        left = [(-x, y) for x, y in reversed(lip[1:-1])]
        canvas.fill(smooth([(56 + x, y) for x, y in lip + left]), colour, weight, 0.7)
    if kind == "goatee":
        canvas.spot((56.0, 0.5 * (mouth + 8 + chin)), (10.0, 0.5 * (chin - mouth - 6)), colour, weight, 1.2)
    # Single hairs: the skin shows through here and there.
    column = int(marks.integers(0, 256))
    gaps = _GRAIN[:MAP_SIZE, column : column + MAP_SIZE, None] * np.float32(0.45)
    painted = canvas.pixels[..., :3]
    painted[...] = painted + (before.astype(np.float32) - painted) * gaps


def _roughen(canvas: Canvas, marks: np.random.Generator) -> None:
    row, column = (int(value) for value in marks.integers(0, 256, 2))
    grain = _GRAIN[row : row + MAP_SIZE, column : column + MAP_SIZE, None]
    canvas.pixels[..., :3] = np.clip(canvas.pixels[..., :3] * (grain * np.float32(0.09) + np.float32(0.955)), 0, 255)
