"""The height of a head towards the viewer: skull, features, hair."""

from __future__ import annotations

import cv2
import numpy as np

from gkd.data.synthetic.canvas import EXTENT, LEFT, TOP, Floats, Points
from gkd.data.synthetic.hair import hair_outline
from gkd.data.synthetic.identity import Identity

RELIEF_SIZE = int(EXTENT)  # the relief has one point a template pixel
HEAD_DEPTH = 46.0
_X, _Y = np.meshgrid(
    np.arange(RELIEF_SIZE, dtype=np.float32) + np.float32(LEFT + 0.5),
    np.arange(RELIEF_SIZE, dtype=np.float32) + np.float32(TOP + 0.5),
)


def build_relief(identity: Identity, outline: Points, hair_mask: Floats, strands: Floats) -> Floats:
    """The height map, float32 (RELIEF_SIZE, RELIEF_SIZE), in template pixels."""
    relief = _dome(outline, 1.0) + _features(identity)
    cover = cv2.resize(hair_mask, (RELIEF_SIZE, RELIEF_SIZE), interpolation=cv2.INTER_AREA)
    locks = cv2.resize(strands, (RELIEF_SIZE, RELIEF_SIZE), interpolation=cv2.INTER_AREA)
    volume = _dome(hair_outline(identity), 0.97) + np.float32(2.0) + locks * np.float32(1.0)
    cover = cv2.GaussianBlur(cover, (0, 0), 1.5)
    raised = np.maximum(relief, volume)
    relief = relief + (raised - relief) * cover
    return np.asarray(cv2.GaussianBlur(relief, (0, 0), 1.2), np.float32)


def slopes(relief: Floats, hair_mask: Floats) -> Floats:
    """What light needs of the height map: x and y slopes, how dark hollows are, how much the surface shines."""
    slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, scale=0.125)
    hollow = cv2.GaussianBlur(relief, (0, 0), 5.0) - relief
    cavity = np.clip(1 - np.float32(0.05) * hollow, 0.66, 1.12)
    gloss = 1 - np.float32(0.5) * cv2.resize(hair_mask, relief.shape[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.merge([slope_x, slope_y, cavity, gloss]), np.float32)


def _dome(outline: Points, height: float) -> Floats:
    """A smooth dome over the outline: flat in front, steep at the edge."""
    mask = np.zeros((RELIEF_SIZE, RELIEF_SIZE), np.uint8)
    shape = np.round((outline - (LEFT, TOP) - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(mask, [shape], (1.0,), cv2.LINE_8, 4)
    half = np.maximum(mask.sum(axis=1, dtype=np.float32) / 2, np.float32(0.5))
    half = cv2.GaussianBlur(half[:, None], (1, 9), 0)[:, 0] + np.float32(2.0)
    across = np.clip(np.abs(_X[0] - 56)[None, :] / half[:, None], 0, 1)
    middle, reach = 52.0, 76.0
    along = np.clip(np.abs(_Y[:, 0] - middle) / reach, 0, 1)
    row_height = (1 - along**2.6) ** (1 / 2.2)
    dome = np.sqrt(np.sqrt(1 - across * across * across)) * (row_height * HEAD_DEPTH * height)[:, None]
    return np.asarray(cv2.GaussianBlur(dome.astype(np.float32), (0, 0), 2.0), np.float32)


def _bump(y: float, height: float, spread: tuple[float, float], x: float = 0.0) -> Floats:
    """A Gaussian hill, one at each side where `x` is not 0."""
    rows = np.exp(-(((_Y[:, 0] - np.float32(y)) / np.float32(spread[1])) ** 2) / 2)
    offset = _X[0] - np.float32(56)
    columns = np.exp(-(((offset - np.float32(x)) / np.float32(spread[0])) ** 2) / 2)
    if x:
        columns += np.exp(-(((offset + np.float32(x)) / np.float32(spread[0])) ** 2) / 2)
    return np.outer(rows * np.float32(height), columns)


def _features(identity: Identity) -> Floats:
    eye_x = identity.eye_gap / 2
    eye_y = identity.eye_y
    parts = [
        _bump(eye_y - 0.5, -identity.socket_depth, (8.5, 6.0), eye_x - 1.5),
        _bump(eye_y - 0.5, 3.0, (identity.eye_width * 0.4, 4.0), eye_x),
        _bump(eye_y - identity.brow_y + 2.5, identity.brow_ridge, (10.0, 3.2), eye_x - 2.0),
        _bump(68.0, identity.cheekbone, (8.0, 7.0), 27.0),
        _bump(84.0, identity.cheek_fill, (8.0, 10.0), 26.0),
        _bump(identity.mouth_y, 4.0, (14.0, 10.0)),
        _bump(identity.mouth_y - 2.6, identity.upper_lip * 0.55, (9.0, 1.8)),
        _bump(identity.mouth_y + 3.6, identity.lower_lip * 0.5, (8.5, 2.4)),
        _bump(identity.mouth_y + 10.0, -2.2, (9.0, 2.8)),
        _bump(identity.chin_y - 8.0, identity.chin_relief, (8.5, 5.0)),
        _bump(identity.chin_y - 7.0, -identity.chin_cleft, (1.5, 3.5)),
        _bump(22.0, identity.forehead, (20.0, 9.0)),
        _nose(identity),
    ]
    return np.asarray(np.sum(parts, axis=0), np.float32)


def _nose(identity: Identity) -> Floats:
    tip_y = identity.nose_y
    rows = _Y[:, 0]
    down = np.clip((rows - 40) / (tip_y - 40), 0, 1)
    height = (
        identity.nose_bridge * np.sin(down * np.pi / 2) ** 2 + (identity.nose_tip - identity.nose_bridge) * down**2.2
    )
    height += identity.nose_hump * np.exp(-(((rows - 60) / 3.5) ** 2))
    height *= np.where(rows > tip_y, np.exp(-(((rows - tip_y) / 5.4) ** 2)), 1.0)
    width = identity.nose_ridge_width + (identity.nose_tip_width - identity.nose_ridge_width) * down**2
    middle = 56 + identity.nose_bend * np.sin(down * np.pi)
    ridge = height[:, None] * np.exp(-(((_X - middle[:, None]) / width[:, None]) ** 2) / 2)
    wings = _bump(tip_y + 0.8, 0.38 * identity.nose_tip, (2.6, 3.4), identity.nose_wing * 0.86)
    return np.asarray(ridge + wings, np.float32)
