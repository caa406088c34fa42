"""Who a synthetic person is, and how one picture of them is taken: plain numbers, drawn from named seeds.

Lengths and positions are in pixels of the 112 x 112 template, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError

Colour = tuple[float, float, float]
_MAX_KEY = 2**32
_IDENTITY_STREAM, _SHOT_STREAM, MARK_STREAM, PAIR_STREAM, SHOT_NOISE_STREAM = range(5)
_Numbers = TypeVar("_Numbers", "Identity", "Shot")


def span(low: float, high: float) -> Any:
    """A number that is uniform in [low, high)."""
    return field(metadata={"low": low, "high": high, "rest": None, "is_uniform": True})


def vary(rest: float, low: float, high: float) -> Any:
    """A number in [low, high), mostly near the middle; `difficulty` scales its distance from `rest`."""
    return field(metadata={"low": low, "high": high, "rest": rest, "is_uniform": False})


def chance() -> Any:
    """A number that is uniform in [0, 1); something rare happens where it is small, and nothing at difficulty 0."""
    return field(metadata={"low": 0.0, "high": 1.0, "rest": 1.0, "is_uniform": True})


@dataclass(frozen=True)
class Identity:
    """What stays the same in every picture of one person. `*_lot` fields are uniform in [0, 1)."""

    # Head outline: half-widths at several heights, and where it ends.
    cheek_width: float = span(36.0, 45.5)
    temple_width: float = span(34.0, 42.0)
    jaw_width: float = span(25.0, 35.5)
    chin_width: float = span(7.0, 16.0)
    chin_y: float = span(109.0, 123.0)
    skull_y: float = span(-14.0, -4.0)
    asymmetry: float = span(-1.4, 1.4)
    # Relief, in pixels towards the viewer.
    brow_ridge: float = span(0.0, 3.2)
    cheekbone: float = span(0.0, 5.0)
    cheek_fill: float = span(-4.5, 3.5)
    chin_relief: float = span(1.0, 6.5)
    chin_cleft: float = span(-1.5, 1.8)
    socket_depth: float = span(2.5, 7.0)
    forehead: float = span(-1.0, 3.0)
    # Eyes and brows.
    eye_gap: float = span(31.5, 38.5)
    eye_y: float = span(49.5, 53.5)
    eye_width: float = span(13.5, 19.0)
    eye_height: float = span(5.2, 9.0)
    eye_tilt: float = span(-1.6, 2.2)
    eye_peak: float = span(-0.35, 0.35)
    lid_crease: float = span(-0.6, 3.0)
    lid_hood: float = span(0.0, 1.6)
    eye_bags: float = span(0.0, 0.4)
    lashes: float = span(0.5, 1.7)
    iris_lot: float = span(0.0, 1.0)
    iris_shade: float = span(0.7, 1.25)
    brow_y: float = span(9.5, 14.5)
    brow_length: float = span(17.0, 25.0)
    brow_weight: float = span(1.5, 4.6)
    brow_arch: float = span(0.2, 4.5)
    brow_slope: float = span(-2.2, 2.4)
    brow_taper: float = span(0.25, 0.9)
    brow_gap: float = span(-1.5, 3.5)
    # Nose.
    nose_y: float = span(68.5, 75.5)
    nose_bridge: float = span(1.5, 5.5)
    nose_tip: float = span(6.5, 12.0)
    nose_tip_width: float = span(3.6, 6.6)
    nose_ridge_width: float = span(2.8, 5.2)
    nose_wing: float = span(6.0, 11.0)
    nose_bend: float = span(-1.4, 1.4)
    nose_hump: float = span(-1.5, 2.6)
    nostril: float = span(0.8, 1.9)
    # Mouth.
    mouth_y: float = span(89.5, 95.5)
    mouth_width: float = span(23.0, 33.0)
    upper_lip: float = span(1.7, 5.0)
    lower_lip: float = span(2.6, 6.8)
    cupid_bow: float = span(0.0, 1.8)
    lip_corner: float = span(-2.6, 0.4)
    lip_colour: float = span(0.15, 0.95)
    # Skin, marks, age.
    melanin: float = span(0.0, 1.0)
    undertone: float = span(-1.0, 1.0)
    blush: float = span(0.0, 0.32)
    age: float = span(0.0, 1.0)
    freckles: float = span(-0.9, 0.8)
    num_moles: float = span(-0.5, 3.5)
    scar_lot: float = span(0.0, 1.0)
    # Hair.
    hair_lot: float = span(0.0, 1.0)
    hair_shade: float = span(0.75, 1.25)
    hair_line: float = span(6.0, 23.0)
    hair_inset: float = span(20.0, 36.0)
    hair_part: float = span(-17.0, 17.0)
    hair_dip: float = span(-5.0, 7.0)
    hair_top: float = span(4.0, 16.0)
    hair_side: float = span(1.5, 10.0)
    hair_length_lot: float = span(0.0, 1.0)
    hair_curl: float = span(0.0, 1.0)
    bangs_lot: float = span(0.0, 1.0)
    bald_lot: float = span(0.0, 1.0)
    beard_lot: float = span(0.0, 1.0)
    beard_weight: float = span(0.45, 0.95)
    # Ears and glasses.
    ear_size: float = span(7.5, 12.5)
    ear_out: float = span(0.5, 5.0)
    glasses_lot: float = span(0.0, 1.0)
    glasses_shape: float = span(0.0, 1.0)
    glasses_width: float = span(0.9, 2.4)
    glasses_lot_colour: float = span(0.0, 1.0)


@dataclass(frozen=True)
class Shot:
    """What changes from picture to picture. Angles are radians; `*_lot` fields decide rare things."""

    yaw: float = vary(0.0, -1.0, 1.0)
    pitch: float = vary(0.0, -0.5, 0.5)
    roll: float = vary(0.0, -0.2, 0.2)
    scale: float = vary(1.0, 0.88, 1.12)
    shift_x: float = vary(0.0, -6.0, 6.0)
    shift_y: float = vary(0.0, -6.0, 6.0)
    smile: float = vary(0.0, -0.7, 1.3)
    mouth_open: float = vary(0.0, -0.6, 1.0)
    brow_raise: float = vary(0.0, -2.0, 2.6)
    eye_open: float = vary(1.0, 0.55, 1.25)
    gaze_x: float = vary(0.0, -2.6, 2.6)
    gaze_y: float = vary(0.0, -1.2, 1.2)
    light_side: float = vary(0.0, -1.9, 1.9)
    light_height: float = vary(0.5, -0.7, 1.5)
    light_strength: float = vary(0.75, 0.2, 1.4)
    ambient: float = vary(0.5, 0.12, 0.75)
    shine: float = vary(0.15, 0.0, 0.45)
    fill_tint: float = vary(0.0, -0.3, 0.3)
    warmth: float = vary(0.0, -0.6, 0.6)
    green: float = vary(0.0, -0.22, 0.22)
    gamma: float = vary(0.0, -0.8, 0.65)
    saturation: float = vary(1.0, 0.35, 1.5)
    blur: float = vary(0.0, -0.7, 2.5)
    noise: float = vary(0.0, -4.0, 22.0)
    jpeg_quality: float = vary(90.0, 35.0, 98.0)
    grey_lot: float = chance()
    small_lot: float = chance()
    glasses_lot: float = span(0.0, 1.0)
    wear_lot: float = chance()
    wear_colour: float = span(0.0, 1.0)
    wear_shade: float = span(0.15, 1.0)
    block_lot: float = chance()
    block_x: float = span(0.0, 1.0)
    block_y: float = span(0.0, 1.0)
    block_size: float = span(0.0, 1.0)
    block_turn: float = span(0.0, 3.14)
    background_lot: float = span(0.0, 1.0)
    background_seed: float = span(0.0, 1.0)


def generator(*keys: int) -> np.random.Generator:
    """A random stream that is a function of its keys alone.

    Raises:
        ConfigError: a key outside [0, 2^32), which could name the same stream as another key.
    """
    for key in keys:
        if not 0 <= key < _MAX_KEY:
            raise ConfigError(f"seeds, identities and image numbers must lie in [0, 2^32), got {key}")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(keys)))


def draw_identity(seed: int, identity: int) -> Identity:
    """The person number `identity` of `seed`."""
    return _draw(Identity, generator(seed, _IDENTITY_STREAM, identity), 1.0)


def draw_shot(seed: int, identity: int, image: int, difficulty: float = 1.0) -> Shot:
    """The circumstances of picture number `image` of a person."""
    return _draw(Shot, generator(seed, _SHOT_STREAM, identity, image), difficulty)


def _draw(kind: type[_Numbers], stream: np.random.Generator, difficulty: float) -> _Numbers:
    # Two uniform numbers a field, whatever its kind: a new kind of field does not shift the ones after it.
    pairs = stream.random((len(fields(kind)), 2))
    return kind(**dict(_values(kind, pairs, difficulty)))


def _values(kind: type[_Numbers], pairs: npt.NDArray[np.float64], difficulty: float) -> Iterator[tuple[str, float]]:
    for item, (first, second) in zip(fields(kind), pairs.tolist(), strict=True):
        low, high, rest = item.metadata["low"], item.metadata["high"], item.metadata["rest"]
        share = first if item.metadata["is_uniform"] else (first + second) / 2
        value = low + (high - low) * share
        if rest is not None and difficulty != 1.0:
            value = rest + difficulty * (value - rest)
        # Beyond difficulty 1 a chance would fall below 0.
        yield item.name, max(value, 0.0) if item.metadata["is_uniform"] and rest is not None else value
