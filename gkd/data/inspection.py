"""What a .rec, a .bin or a folder of images holds, told in numbers, text and a picture."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from gkd.core.errors import ConfigError, DataError
from gkd.core.progress import progress
from gkd.data.check.jpeg import jpeg_quality
from gkd.data.check.pair_check import NUM_FOLDS, unbalanced_folds
from gkd.data.contact_sheet import Pixels, draw_sheet
from gkd.data.identities import Faces, open_faces
from gkd.data.image_header import image_format, image_size
from gkd.data.pairs import PairSet
from gkd.data.record_format import read_payload, unpack_record
from gkd.data.recordio import RecordFile
from gkd.data.transforms import decode_image

_log = logging.getLogger(__name__)
_BAR_WIDTH = 40
_NUM_BARS = 10


class _PairImages:
    """The images of a .bin, as sets of faces are read."""

    def __init__(self, path: Path) -> None:
        self.pairs = PairSet.load(path)

    def __len__(self) -> int:
        return len(self.pairs.images)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self.pairs.images[index], int(self.pairs.is_same[index // 2])

    def describe(self, index: int) -> str:
        return self.pairs.describe(index)


def open_images(path: str | Path) -> Faces | _PairImages:
    """A .bin, a .rec or a folder.

    Raises:
        DataError: as `PairSet.load`, `RecordFile` and `FaceFolder`.
    """
    path = Path(path)
    return _PairImages(path) if path.suffix == ".bin" else open_faces(path)


def inspect(path: str | Path, *, num_sampled: int | None = 2000, seed: int = 0) -> dict[str, Any]:
    """Everything about the set at `path` that can be told without decoding, ready for JSON.

    Args:
        num_sampled: images whose headers are read for formats, sizes and qualities; None reads all.
        seed: which images are sampled.

    Raises:
        ConfigError: fewer than one sampled image.
        DataError: the set cannot be opened, or a sampled record is damaged.
    """
    path = Path(path)
    images = open_images(path)
    report: dict[str, Any] = {"path": str(path), "num_images": len(images), "bytes": _num_bytes(path, images)}
    if isinstance(images, _PairImages):
        report |= {"kind": "pairs"} | _describe_pairs(images.pairs)
    else:
        report |= {"kind": "records" if isinstance(images, RecordFile) else "folder"} | _describe_labels(images)
    if isinstance(images, RecordFile):
        report |= _describe_container(images.path)
    return report | _describe_images(images, choose(len(images), num_sampled, seed))


def choose(num_images: int, num_chosen: int | None, seed: int) -> npt.NDArray[np.int64]:
    """`num_chosen` random indices below `num_images`, ascending, or all where there are not more.

    Raises:
        ConfigError: fewer than one.
    """
    if num_chosen is None or num_chosen >= num_images:
        return np.arange(num_images)
    if num_chosen < 1:
        raise ConfigError(f"at least 1 image must be looked at, got {num_chosen}")
    return np.sort(np.random.default_rng(seed).choice(num_images, num_chosen, replace=False))


def sheet_of(path: str | Path, num_images: int, seed: int = 0) -> Pixels:
    """A contact sheet of random images: the label and key, or the pair and side, below each.

    Raises:
        ConfigError: fewer than one image. DataError: an image that cannot be read or decoded.
    """
    images = open_images(path)
    drawn, captions = [], []
    for index in choose(len(images), num_images, seed).tolist():
        encoded, label = images[index]
        size = image_size(encoded)
        if size is None:
            raise DataError(f"{images.describe(index)}: not an image whose header can be read")
        drawn.append(_shrink(decode_image(encoded, size, images.describe(index))))
        captions.append(_caption(images, index, label))
    return draw_sheet(drawn, captions=captions)


def as_text(report: dict[str, Any]) -> str:
    """The report for reading: a line for each entry, then a histogram of images per identity."""
    histogram = report.get("images_per_identity", {}).get("histogram")
    lines = [f"{name:22} {_as_words(value)}" for name, value in report.items()]
    if histogram:
        lines += ["", "images   identities", *_bars(histogram)]
    return "\n".join(lines) + "\n"


def _num_bytes(path: Path, images: Faces | _PairImages) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(Path(images.describe(index)).stat().st_size for index in range(len(images)))


def _describe_labels(images: Faces) -> dict[str, Any]:
    counts = np.bincount(images.labels)
    present = counts[counts > 0]
    return {
        "num_identities": int(images.num_identities),
        "identities_with_images": len(present),
        "is_sorted_by_label": bool(np.all(np.diff(images.labels) >= 0)),
        "has_names": images.identity_names is not None,
        "images_per_identity": {
            "min": int(present.min()),
            "median": float(np.median(present)),
            "mean": round(float(present.mean()), 2),
            "max": int(present.max()),
            "histogram": _histogram(present),
        },
    }


def _histogram(counts: npt.NDArray[np.int64]) -> list[list[int]]:
    """Rows of [least, most, identities] over at most ten ranges of the number of images."""
    low, high = int(counts.min()), int(counts.max())
    step = max(1, -(-(high - low + 1) // _NUM_BARS))
    rows = [[start, min(start + step - 1, high)] for start in range(low, high + 1, step)]
    return [[start, end, int(np.sum((counts >= start) & (counts <= end)))] for start, end in rows]


def _describe_container(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        first = unpack_record(read_payload(read, 0, size))
    has_header = first.key == 0 and first.flag > 0 and not first.body
    return {
        "header": "insightface header" if has_header else "headerless (im2rec)",
        "first_id": first.key,
        "has_idx": path.with_suffix(".idx").exists(),
        "has_lst": path.with_suffix(".lst").exists(),
        "has_property": path.with_name("property").exists(),
    }


def _describe_pairs(pairs: PairSet) -> dict[str, Any]:
    num_same = int(pairs.is_same.sum())
    is_foldable = 0 < num_same < len(pairs) and len(pairs) >= NUM_FOLDS
    keys = [tuple(sorted(pairs.images[2 * number : 2 * number + 2])) for number in range(len(pairs))]
    return {
        "num_pairs": len(pairs),
        "num_same": num_same,
        "num_different": len(pairs) - num_same,
        "is_multiple_of_10": len(pairs) % NUM_FOLDS == 0,
        "unbalanced_folds": unbalanced_folds(pairs) if is_foldable else "no folds: one class only, or too few pairs",
        "distinct_images": len(set(pairs.images)),
        "repeated_pairs": len(keys) - len(set(keys)),
    }


def _describe_images(images: Faces | _PairImages, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
    formats, sizes, qualities, lengths = Counter[str](), Counter[str](), Counter[str](), []
    for index in progress(chosen, "reading", total=len(chosen)):
        encoded = images[int(index)][0]
        size, kind = image_size(encoded), image_format(encoded) or "unknown"
        formats[kind] += 1
        sizes[f"{size[0]}x{size[1]}" if size else "unknown"] += 1
        lengths.append(len(encoded))
        quality = jpeg_quality(encoded) if kind == "jpeg" else None
        if quality is not None:
            qualities[f"{quality.value}" if quality.is_exact else f"about {quality.value}"] += 1
    return {
        "looked_at": len(chosen),
        "formats": dict(formats.most_common()),
        "sizes": dict(sizes.most_common(20)),
        "jpeg_quality": dict(qualities.most_common(20)),
        "bytes_per_image": {"min": min(lengths), "mean": round(float(np.mean(lengths)), 1), "max": max(lengths)},
    }


def _shrink(image: Pixels, longest: int = 256) -> Pixels:
    """The image, made smaller where it is larger than a tile should be."""
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _caption(images: Faces | _PairImages, index: int, label: int) -> str:
    if isinstance(images, _PairImages):
        return f"{index // 2}{'R' if index % 2 else 'L'} {'same' if label else 'diff.'}"
    key = int(images.keys[index]) if isinstance(images, RecordFile) else Path(images.describe(index)).name
    return f"{label} / {key}"


def _as_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        shown = {name: item for name, item in value.items() if name != "histogram"}
        return ", ".join(f"{name}: {_as_words(item)}" for name, item in shown.items()) or "-"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _bars(histogram: list[list[int]]) -> list[str]:
    largest = max(row[2] for row in histogram)
    texts = [f"{start}" if start == end else f"{start}-{end}" for start, end, _ in histogram]
    return [
        f"{text:>9} {count:>8,} {'#' * -(-_BAR_WIDTH * count // largest)}"
        for text, (_, _, count) in zip(texts, histogram, strict=True)
    ]
