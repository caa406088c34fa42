"""What is known of each pair beside its pictures: texts beside a .bin, and how sharp the pictures are.

Shapes: P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.data.text_lists import Faults, read_lines, shown

UNKNOWN = "-"

Float64s = npt.NDArray[np.float64]

_THREADS = 2


def values_path(bin_path: Path, kind: str) -> Path:
    """Where the values of the pairs of a .bin are looked for: `lfw.yaw.txt` beside `lfw.bin`."""
    return bin_path.with_name(f"{bin_path.stem}.{kind}.txt")


def read_pair_values(path: str | Path, num_pairs: int) -> Float64s:
    """One number of each pair (P,), NaN where it is unknown.

    Args:
        path: a text of one line a pair, in the order of the set: a number, or `-` where it is unknown.

    Raises:
        DataError: a file that cannot be read as such (all wrong lines are named), or another number of pairs.
    """
    path = Path(path)
    faults, values = Faults(path, "lines are wrong"), []
    for number, line in read_lines(path):
        value = _number(line.strip())
        if value is None:
            faults.add_line(number, f"{shown(line)}, but a number, or {UNKNOWN} for an unknown one, is needed")
        else:
            values.append(value)
    faults.raise_any()
    if len(values) != num_pairs:
        raise DataError(f"{path}: has {len(values):,} values, but the set has {num_pairs:,} pairs; one line a pair")
    return np.array(values, dtype=np.float64)


def _number(text: str) -> float | None:
    if text == UNKNOWN:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def pair_sharpness(images: Sequence[bytes]) -> Float64s:
    """The sharpness (P,) of the less sharp picture of each pair: log2 of the variance of the Laplacian of its grey.

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (2000), whose focus measure that is.
    It measures blur and lost resolution, and also how much detail a face has: it orders pairs within a set, no more.

    Args:
        images: 2 · P encoded images, those of a pair one after another. NaN where one does not decode.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="sharpness") as pool:
        found = np.array(list(pool.map(_sharpness, images)), dtype=np.float64)
    lower: Float64s = found.reshape(-1, 2).min(axis=1)  # NaN wins
    return lower


def _sharpness(image: bytes) -> float:
    try:
        grey = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        return math.nan
    if grey is None:
        return math.nan
    return math.log2(1 + float(cv2.Laplacian(grey, cv2.CV_64F).var()))
