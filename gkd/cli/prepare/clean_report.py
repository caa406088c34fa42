"""What `prepare.py clean` tells: how alike images are to the rest of their identity, and what is left out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.data.contact_sheet import draw_sheet, save_sheet
from gkd.data.identities import Faces
from gkd.data.image_header import image_size
from gkd.data.rec_clean import lost_identities
from gkd.data.transforms import decode_image
from gkd.inference.clean import Findings
from gkd.inference.label_noise import THRESHOLDS, spread_of

_log = logging.getLogger(__name__)
_WIDEST_BAR = 50

Bools = npt.NDArray[np.bool_]


def as_text(faces: Faces, findings: Findings, is_left_out: Bools) -> str:
    """A histogram of the cosines, what thresholds would leave out, and what is left out now."""
    spread = spread_of(findings.own_cosines)
    lines = [
        f"{len(faces):,} images of {faces.num_identities:,} identities; their cosine to the rest of their identity:"
    ]
    lines += ["", *_bars(spread["own_cosine_histogram"]["edges"], spread["own_cosine_histogram"]["counts"])]
    lines += ["", "below     images       %   identities without any left", *_thresholds(faces, findings), ""]
    return "\n".join(lines + _left_out(faces, findings, is_left_out)) + "\n"


def draw_left_out(path: Path, faces: Faces, findings: Findings, images: npt.NDArray[np.int64], number: int) -> None:
    """Draw the first `number` of `images` that can be read, with label, sample id and cosine below each.

    Raises:
        ConfigError: fewer than one. DataError: the picture cannot be written.
    """
    if number < 1:
        raise ConfigError(f"clean --images: at least 1 image must be drawn, got {number}")
    readable = images[~findings.is_unreadable[images]][:number].tolist()
    if not readable:
        _log.warning("%s: not drawn, since no image that can be read is left out", path)
        return
    captions = [f"{faces.labels[image]}/{image} {findings.own_cosines[image]:.2f}" for image in readable]
    save_sheet(draw_sheet([_pixels(faces, image) for image in readable], captions=captions), path)
    _log.info("drew %d of the %d images left out into %s", len(readable), len(images), path)


def _bars(edges: list[float], counts: list[int]) -> list[str]:
    """A line for each bin between the first and the last that hold an image."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return ["no identity has two images to compare"]
    bars = ["#" * round(_WIDEST_BAR * count / max(counts)) for count in counts]
    return [
        f"{edges[place]:5.2f} to {edges[place + 1]:5.2f} {counts[place]:10,} {bars[place]}".rstrip()
        for place in range(filled[0], filled[-1] + 1)
    ]


def _thresholds(faces: Faces, findings: Findings) -> list[str]:
    lines = []
    for threshold in THRESHOLDS:
        is_below = findings.own_cosines < threshold  # NaN is not
        share = 100 * is_below.mean()
        lines.append(f"{threshold:5.2f} {is_below.sum():10,} {share:7.2f}   {len(lost_identities(faces, is_below)):,}")
    return lines


def _left_out(faces: Faces, findings: Findings, is_left_out: Bools) -> list[str]:
    num_left_out = int(is_left_out.sum())
    lines = [
        f"left out: {num_left_out:,} images ({100 * is_left_out.mean():.2f} %), "
        f"{len(lost_identities(faces, is_left_out)):,} identities lose all of theirs"
    ]
    reasons = {
        "unlike the rest of their identity": findings.is_outlier,
        "nearer to another identity": findings.is_mislabelled,
        "not readable": findings.is_unreadable,
    }
    for reason, is_so in reasons.items():
        if (is_so & is_left_out).any():
            lines.append(f"  {reason}: {(is_so & is_left_out).sum():,}")
    if len(findings.num_by_round) > 1:
        lines.append(f"  found by round: {', '.join(f'{number:,}' for number in findings.num_by_round)}")
    return lines


def _pixels(faces: Faces, image: int) -> npt.NDArray[np.uint8]:
    encoded = faces[image][0]
    size = image_size(encoded)
    if size is None:
        raise DataError(f"{faces.describe(image)}: not an image whose header can be read")
    return decode_image(encoded, size, faces.describe(image))
