"""Painting smooth shapes on the flat map of a head, in template coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Colour = tuple[float, float, float]

LEFT, TOP, EXTENT = -24.0, -32.0, 160.0  # the part of the plane that the map covers, in template pixels
DENSITY = 1.5  # map pixels a template pixel
MAP_SIZE = int(EXTENT * DENSITY)
_SHIFT = 4  # OpenCV takes positions as integers of 1/16 pixel
_TO_MAP = DENSITY * 2**_SHIFT
_TO_MAP_ORIGIN = np.array([LEFT * DENSITY + 0.5, TOP * DENSITY + 0.5]) * 2**_SHIFT
_STEPS = 6
_T = np.linspace(0.0, 1.0, _STEPS, endpoint=False)[:, None] ** np.arange(4)
_CATMULL_ROM = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]], dtype=np.float64)
_WEIGHTS = _T @ _CATMULL_ROM


def smooth(points: Sequence[tuple[float, float]], is_closed: bool = True) -> Points:
    """A curve through the points (Catmull-Rom), (n, 2)."""
    knots = np.array(points, dtype=np.float64)
    if is_closed:
        padded = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    segments = len(padded) - 3
    windows = np.stack([padded[i : segments + i] for i in range(4)]).reshape(4, -1)
    curve: Points = (_WEIGHTS @ windows).reshape(_STEPS, segments, 2).swapaxes(0, 1).reshape(-1, 2)
    return curve if is_closed else np.concatenate([curve, knots[-1:]])


def shade(colour: Colour, factor: float) -> Colour:
    """The colour times `factor`, no lighter than white."""
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return (red, green, blue)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return (red, green, blue)


def to_map(points: Points) -> npt.NDArray[np.int32]:
    """Template coordinates as OpenCV's fixed-point pixel positions on the map."""
    return np.asarray(np.rint(points * _TO_MAP - _TO_MAP_ORIGIN), dtype=np.int32)


class Canvas:
    """The colour map of a head.

    Attributes:
        pixels: uint8 (MAP_SIZE, MAP_SIZE, 4), RGB and cover.
    """

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    def fill(self, points: Points, colour: Colour, opacity: float = 1.0, blur: float = 0.0) -> None:
        """Fill a polygon; `blur` is the softness of its edge in template pixels."""
        shape = to_map(points)
        if opacity >= 1.0 and blur == 0.0:
            cv2.fillPoly(self.pixels, [shape], (*colour, 255.0), cv2.LINE_AA, _SHIFT)
            return
        rows, columns, origin = self._window(shape, blur, 0.0)
        mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        cv2.fillPoly(mask, [shape - origin], (255.0 * opacity,), cv2.LINE_AA, _SHIFT)
        self._blend(rows, columns, mask, colour, blur)

    def stroke(
        self, points: Points, colour: Colour, width: float = 1.0, opacity: float = 1.0, blur: float = 0.0
    ) -> None:
        """Draw a line of `width` template pixels along the points."""
        shape = to_map(points)
        thickness = max(1, round(width * DENSITY))
        # A line cannot be thinner than a pixel: it gets fainter instead.
        opacity *= min(1.0, width * DENSITY)
        rows, columns, origin = self._window(shape, blur, width)
        mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        cv2.polylines(mask, [shape - origin], False, (255.0 * opacity,), thickness, cv2.LINE_AA, _SHIFT)
        self._blend(rows, columns, mask, colour, blur)

    def spot(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        opacity: float = 1.0,
        blur: float = 0.0,
        turn: float = 0.0,
    ) -> None:
        """Fill an ellipse turned by `turn` radians."""
        self.fill(ellipse(centre, radii, turn), colour, opacity, blur)

    @contextmanager
    def clipped_to(self, points: Points) -> Iterator[None]:
        """Keep only what is painted inside the polygon."""
        shape = to_map(points)
        rows, columns, origin = self._window(shape, 0.0, 8.0)
        window = self.pixels[rows, columns]
        before = window.copy()
        yield
        mask = np.zeros(before.shape[:2], np.uint8)
        cv2.fillPoly(mask, [shape - origin], (255.0,), cv2.LINE_AA, _SHIFT)
        share = mask[..., None].astype(np.float32) / 255
        window[...] = before + (window.astype(np.float32) - before) * share

    def _window(
        self, shape: npt.NDArray[np.int32], blur: float, width: float
    ) -> tuple[slice, slice, npt.NDArray[np.int32]]:
        margin = int((3 * blur + width) * DENSITY) + 2
        x, y, length, height = cv2.boundingRect(shape)
        left, right = _reach(x, length, margin)
        top, bottom = _reach(y, height, margin)
        origin = np.array([left << _SHIFT, top << _SHIFT], np.int32)
        return slice(top, bottom), slice(left, right), origin

    def _blend(self, rows: slice, columns: slice, mask: Pixels, colour: Colour, blur: float) -> None:
        if blur > 0:
            mask = soften(mask, blur * DENSITY)
        window = self.pixels[rows, columns, :3]
        step = np.array(colour, np.float32) - window
        step *= (mask * np.float32(1 / 255))[..., None]
        step += np.float32(0.5)
        step += window
        window[...] = step


def _reach(start: int, length: int, margin: int) -> tuple[int, int]:
    """The pixels that a shape at fixed-point `start` can touch along one axis, at least one."""
    low = min(max((start >> _SHIFT) - margin, 0), MAP_SIZE - 1)
    high = min(((start + length) >> _SHIFT) + margin + 1, MAP_SIZE)
    return low, max(high, low + 1)


def ellipse(centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0) -> Points:
    """The outline of an ellipse, (24, 2)."""
    x, y = radii[0] * _CIRCLE[:, 0], radii[1] * _CIRCLE[:, 1]
    cos, sin = math.cos(turn), math.sin(turn)
    outline = np.empty((len(_CIRCLE), 2))
    outline[:, 0] = centre[0] + x * cos - y * sin
    outline[:, 1] = centre[1] + x * sin + y * cos
    return outline


def soften(image: Pixels, sigma: float) -> Pixels:
    """A Gaussian blur with a border of nothing."""
    blurred = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(blurred, dtype=np.uint8)


_ANGLES = np.arange(24) * (2 * np.pi / 24)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
