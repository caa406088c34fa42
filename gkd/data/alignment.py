"""Brings faces to one place and size: the similarity transform from five landmarks to the field's template.

Points are (x, y) in pixels, x to the right and y down, pixel centres at whole numbers. Their order is that of the
picture, not of the person: left eye, right eye, nose, left mouth corner, right mouth corner.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError

Points = npt.NDArray[np.float64]  # (5, 2)
Pixels = npt.NDArray[np.uint8]

MIN_SIZE, MAX_SIZE = 16, 1024
_TEMPLATE_SIZE = 112
_TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
_LEAST_SPREAD = 1e-6


def template(size: int = _TEMPLATE_SIZE) -> Points:
    """Where the five landmarks lie in an aligned face of `size` x `size` pixels, float64 (5, 2).

    The field's template for 112 pixels, times size / 112.

    Raises:
        ConfigError: a size below 16 or above 1024.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(f"--size: must be {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    return _TEMPLATE * (size / _TEMPLATE_SIZE)


def estimate_similarity(source: npt.ArrayLike, target: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The rotation R, scale c and shift t with the least sum of |target - (c R source + t)|^2, without reflection.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns", 1991,
    eq. 34-43: with the covariance U D V^T of target and source, and S = diag(1, sign of its determinant),
    R = U S V^T (40), t = mean(target) - c R mean(source) (41), c = tr(D S) / variance(source) (42).

    Args:
        source: (P, 2), P at least 2.
        target: (P, 2).

    Returns:
        (2, 3), [c R | t].

    Raises:
        DataError: points that are not finite, or that are all the same.
    """
    x, y = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError("the landmarks are not all finite numbers")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x_centred, y_centred = x - x_mean, y - y_mean
    variance = (x_centred**2).sum() / len(x)
    if variance < _LEAST_SPREAD:
        raise DataError("the landmarks are all at one place, so no transform follows from them")
    left, spread, right = np.linalg.svd(y_centred.T @ x_centred / len(x))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = (left * signs) @ right
    scale = (spread * signs).sum() / variance
    return np.column_stack([scale * rotation, y_mean - scale * rotation @ x_mean])


def align_face(image: Pixels, points: npt.ArrayLike, size: int = _TEMPLATE_SIZE) -> Pixels:
    """The face of `image` whose landmarks are `points`, at the template's place.

    Bilinear; what lies outside the image becomes 0.

    Args:
        image: uint8 (H, W, 3), in any order of colours.
        points: (5, 2), see the module.
        size: the height and width of the result, in pixels.

    Returns:
        uint8 (size, size, 3).

    Raises:
        ConfigError: a size out of range.
        DataError: see `estimate_similarity`; or the points lie outside the image.
    """
    target = template(size)
    matrix = estimate_similarity(points, target)
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    if (high < 0).any() or low[0] >= image.shape[1] or low[1] >= image.shape[0]:
        raise DataError(f"the landmarks lie outside the photo of {image.shape[1]}x{image.shape[0]} pixels")
    if abs(np.linalg.det(matrix[:, :2])) < _LEAST_SPREAD:
        raise DataError("the landmarks have no likeness to a face's, so no transform follows from them")
    aligned = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0))
    return np.asarray(aligned, np.uint8)


def is_mirrored(points: npt.ArrayLike) -> bool:
    """Whether left and right of five points are exchanged: seen from the eyes, the mouth is on the wrong side."""
    left_eye, right_eye, _, left_mouth, right_mouth = np.asarray(points, np.float64)
    across, down = right_eye - left_eye, (left_mouth + right_mouth - left_eye - right_eye) / 2
    return bool(across[0] * down[1] - across[1] * down[0] < 0)
