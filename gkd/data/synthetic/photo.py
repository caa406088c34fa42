"""One picture of a head: pose, alignment, light, background, camera."""

from __future__ import annotations

import cv2
import numpy as np

from gkd.data.synthetic.canvas import DENSITY, LEFT, TOP, Canvas, Floats, Pixels, ellipse
from gkd.data.synthetic.identity import Shot
from gkd.data.synthetic.looks import skin
from gkd.data.synthetic.parts import paint_parts
from gkd.data.synthetic.relief import RELIEF_SIZE
from gkd.data.synthetic.surface import Surface
from gkd.data.synthetic.wear import any_colour, paint_wear

FRAME = 112  # every picture is made at this size, then resized
_TEMPLATE = np.array(
    [38.2946 + 51.6963j, 73.5318 + 51.5014j, 56.0252 + 71.7366j, 41.5493 + 92.3655j, 70.7299 + 92.2041j]
)
_PIVOT_X, _PIVOT_Y, _PIVOT_Z = 56.0, 66.0, 28.0
_U, _V = np.meshgrid(np.arange(FRAME, dtype=np.float32), np.arange(FRAME, dtype=np.float32))
_NOISE = np.random.Generator(np.random.Philox(3)).standard_normal((2 * FRAME, 2 * FRAME, 3), dtype=np.float32)
_RAMP = np.linspace(0.0, 1.0, 256)
_LUMA = np.array([[0.299, 0.587, 0.114]] * 3)


def take_photo(surface: Surface, shot: Shot, noise: np.random.Generator) -> Pixels:
    """The picture: uint8 (112, 112, 3) RGB, aligned by its landmarks up to the shot's jitter."""
    canvas = Canvas(surface.colours.copy())
    paint_parts(canvas, surface.identity, shot)
    paint_wear(canvas, surface.identity, shot)
    across, down = _positions(surface, shot)
    colours = cv2.remap(
        canvas.pixels,
        (across - np.float32(LEFT)) * np.float32(DENSITY) - np.float32(0.5),
        (down - np.float32(TOP)) * np.float32(DENSITY) - np.float32(0.5),
        cv2.INTER_LINEAR,
    )
    shape = cv2.remap(surface.shape, *_on_relief(across, down), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    lit = _light(np.asarray(colours, np.uint8), np.asarray(shape, np.float32), shot)
    cover = colours[..., 3:].astype(np.float32) * np.float32(1 / 255)
    behind = _background(shot, noise)
    picture = np.clip(behind + (lit - behind) * cover, 0, 255).astype(np.uint8)
    return _camera(_block(picture, surface, shot), shot, noise)


def _on_relief(across: Floats, down: Floats) -> tuple[Floats, Floats]:
    return across - np.float32(LEFT + 0.5), down - np.float32(TOP + 0.5)


def _positions(surface: Surface, shot: Shot) -> tuple[Floats, Floats]:
    """Where on the flat map each pixel of the frame looks, two (112, 112) maps.

    A point (x, y, z) of the head lands at x' = x cos(yaw) + z sin(yaw) and y' = y cos(pitch) - z' sin(pitch), with
    z' = z cos(yaw) - x sin(yaw). Here that is solved for (x, y) by iteration, since z depends on them.
    """
    turn, shift = _alignment(surface, shot)
    inverse = 1 / turn
    u, v = _U - np.float32(shift.real), _V - np.float32(shift.imag)
    seen_x = u * np.float32(inverse.real) - v * np.float32(inverse.imag)
    seen_y = u * np.float32(inverse.imag) + v * np.float32(inverse.real)
    sin_yaw, cos_yaw = np.float32(np.sin(shot.yaw)), np.float32(np.cos(shot.yaw))
    sin_pitch, cos_pitch = np.float32(np.sin(shot.pitch)), np.float32(np.cos(shot.pitch))
    x, y = seen_x + np.float32(_PIVOT_X), seen_y + np.float32(_PIVOT_Y)
    for _ in range(3):
        depth = cv2.remap(surface.depth, *_on_relief(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        depth = depth - np.float32(_PIVOT_Z)
        # The average with the last place keeps steep edges from folding over.
        flat_x = (seen_x - depth * sin_yaw) / cos_yaw
        turned = depth * cos_yaw - flat_x * sin_yaw
        flat_y = (seen_y + turned * sin_pitch) / cos_pitch
        x = (x + 2 * (flat_x + np.float32(_PIVOT_X))) / 3
        y = (y + 2 * (flat_y + np.float32(_PIVOT_Y))) / 3
    return x, y


def _alignment(surface: Surface, shot: Shot) -> tuple[complex, complex]:
    """Factor and offset of the similarity that brings the posed landmarks to the template, with jitter."""
    person = surface.identity
    eye, mouth = person.eye_gap / 2, person.mouth_width / 2
    points = np.array(
        [
            (56 - eye, person.eye_y),
            (56 + eye, person.eye_y),
            (56.0, person.nose_y),
            (56 - mouth, person.mouth_y),
            (56 + mouth, person.mouth_y),
        ]
    )
    columns, rows = (points - (LEFT + 0.5, TOP + 0.5)).astype(int).clip(0, RELIEF_SIZE - 1).T
    depth = surface.depth[rows, columns] - _PIVOT_Z
    x, y = points[:, 0] - _PIVOT_X, points[:, 1] - _PIVOT_Y
    turned = depth * np.cos(shot.yaw) - x * np.sin(shot.yaw)
    seen = x * np.cos(shot.yaw) + depth * np.sin(shot.yaw) + 1j * (y * np.cos(shot.pitch) - turned * np.sin(shot.pitch))
    centred = seen - seen.mean()
    factor = np.vdot(centred, _TEMPLATE - _TEMPLATE.mean()) / np.vdot(centred, centred).real
    factor *= shot.scale * np.exp(1j * shot.roll)
    offset = _TEMPLATE.mean() + complex(shot.shift_x, shot.shift_y) - factor * seen.mean()
    return complex(factor), complex(offset)


def _light(colours: Pixels, shape: Floats, shot: Shot) -> Floats:
    """Diffuse, ambient and shine from one lamp and a weak tinted fill, float32 (112, 112, 3)."""
    direction = np.array([np.sin(shot.light_side), -np.sin(shot.light_height), 0.0])
    direction[2] = np.sqrt(max(0.15, 1.0 - 0.5 * float(direction @ direction)))
    lamp = direction / np.sqrt(direction @ direction)
    # The head turns against the lamp.
    slope_x, slope_y, cavity, gloss = cv2.split(shape)
    facing_x, facing_y = slope_x - np.float32(np.tan(shot.yaw)), slope_y + np.float32(np.tan(shot.pitch))
    length = 1 / np.sqrt(facing_x * facing_x + facing_y * facing_y + 1)
    diffuse = (np.float32(lamp[2]) - facing_x * np.float32(lamp[0]) - facing_y * np.float32(lamp[1])) * length
    np.maximum(diffuse, 0, out=diffuse)
    half = lamp + (0.0, 0.0, 1.0)
    half /= np.sqrt(half @ half)
    shine = np.maximum(
        (np.float32(half[2]) - facing_x * np.float32(half[0]) - facing_y * np.float32(half[1])) * length, 0
    )
    for _ in range(4):
        shine *= shine
    shine *= gloss * np.float32(150 * shot.shine)
    sides = np.float32(shot.fill_tint) * facing_x * length
    level = (np.float32(shot.ambient) * cavity + diffuse * (cavity * np.float32(shot.light_strength)))[..., None]
    tints = level + sides[..., None] * np.array([0.6, 0.0, -0.6], np.float32)
    return np.asarray(colours[..., :3] * tints + shine[..., None], np.float32)


def _background(shot: Shot, noise: np.random.Generator) -> Floats:
    """Blurred patches of colour, sometimes with stripes."""
    size = 2 + int(6 * shot.background_lot)
    base = np.array(any_colour(shot.background_seed, 0.35 + 0.75 * shot.background_lot), np.float32)
    patches = base + (noise.random((size, size, 3), dtype=np.float32) - np.float32(0.5)) * np.float32(80)
    return np.asarray(cv2.resize(patches, (FRAME, FRAME), interpolation=cv2.INTER_CUBIC), np.float32)


def _block(picture: Pixels, surface: Surface, shot: Shot) -> Pixels:
    """A hand or an object before the face, in some pictures."""
    if shot.block_lot > 0.24:
        return picture
    angle = 6.283 * shot.block_x
    far = 26 + 24 * shot.block_y
    centre = (56 + far * float(np.cos(angle)), 60 + far * float(np.sin(angle)))
    size = 11 + 14 * shot.block_size
    is_hand = shot.block_lot < 0.12
    tone = tuple(0.85 * c for c in skin(surface.identity)) if is_hand else any_colour(shot.wear_colour, shot.wear_shade)
    count = 4 if is_hand else 1
    picture = np.ascontiguousarray(picture)
    for finger in range(count):
        shift = (finger - (count - 1) / 2) * 0.42 * size
        across = (-np.sin(shot.block_turn) * shift, np.cos(shot.block_turn) * shift)
        radii = (1.5 * size, 0.23 * size) if is_hand else (size, 0.7 * size)
        outline = ellipse((centre[0] + across[0], centre[1] + across[1]), radii, shot.block_turn)
        points = np.round(outline * 16).astype(np.int32)
        cv2.fillPoly(picture, [points], tone, cv2.LINE_AA, 4)
        if is_hand:
            cv2.polylines(picture, [points], True, tuple(0.75 * c for c in tone), 1, cv2.LINE_AA, 4)
    return picture


def _camera(picture: Pixels, shot: Shot, noise: np.random.Generator) -> Pixels:
    """Colour cast, contrast, blur, low resolution and noise."""
    gains = np.exp([shot.warmth * 0.6 + shot.green * -0.4, shot.green, -shot.warmth * 0.7 - shot.green * 0.4])
    curve = 255 * np.clip(_RAMP[:, None] ** np.exp(shot.gamma) * gains, 0, 1)
    picture = np.asarray(cv2.LUT(picture, curve.astype(np.uint8)[None]), np.uint8)
    saturation = 0.0 if shot.grey_lot < 0.1 else shot.saturation
    picture = np.asarray(cv2.transform(picture, saturation * np.eye(3) + (1 - saturation) * _LUMA), np.uint8)
    if shot.blur > 0.35:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), shot.blur), np.uint8)
    if shot.small_lot < 0.16:
        size = int(26 + 180 * shot.small_lot)
        small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
        picture = np.asarray(cv2.resize(small, (FRAME, FRAME), interpolation=cv2.INTER_LINEAR), np.uint8)
    if shot.noise > 1.0:
        row, column = (int(value) for value in noise.integers(0, FRAME, 2))
        grain = _NOISE[row : row + FRAME, column : column + FRAME] * np.float32(shot.noise)
        picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
    return picture
