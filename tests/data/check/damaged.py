"""Small .rec files for the tests of checks, and what of them a change of bytes leaves whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from gkd.data.record_format import MAGIC, frame, pack_record

NUM_IMAGES = 12


@dataclass(frozen=True)
class Span:
    """A record as written: its key, bytes [start, end), label, and body (empty for header and identity records)."""

    key: int
    start: int
    end: int
    label: int
    body: bytes


@dataclass(frozen=True)
class Sample:
    """A file's bytes, its records and its .idx."""

    content: bytes
    spans: tuple[Span, ...]

    @property
    def idx(self) -> str:
        return "".join(f"{span.key}\t{span.start}\n" for span in self.spans)

    @property
    def images(self) -> list[Span]:
        return [span for span in self.spans if span.body]

    def write(self, path: Path, content: bytes | None = None, *, with_idx: bool = True) -> Path:
        """Write `content`, or the whole file, and the .idx of the whole file."""
        path.write_bytes(self.content if content is None else content)
        path.with_suffix(".idx").unlink(missing_ok=True)
        if with_idx:
            path.with_suffix(".idx").write_text(self.idx)
        return path


def small_jpeg(number: int, quality: int = 60) -> bytes:
    """A JPEG of some 700 bytes."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    smooth = cv2.resize(pixels, (16, 16), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def jpeg_with_magic(number: int) -> bytes:
    """A JPEG whose comment holds the magic at each alignment, twice in a row, and as if a record began there."""
    encoded = small_jpeg(number)
    fake = MAGIC + bytes([24, 0, 0, 0]) + bytes(24)
    comment = b"".join(bytes(gap) + MAGIC for gap in (0, 1, 2, 3, 0)) + fake + MAGIC + fake[:8]
    return encoded[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + encoded[2:]


@cache
def sample(*, has_header: bool = True) -> Sample:
    """Twelve images of four identities, one of them full of magic words, in either layout."""
    rows: list[tuple[int, tuple[float, ...], int, bytes]] = []
    if has_header:
        rows.append((0, (NUM_IMAGES + 1.0, NUM_IMAGES + 5.0), -1, b""))
    for number in range(NUM_IMAGES):
        body = jpeg_with_magic(number) if number == 4 else small_jpeg(number)
        rows.append((number + has_header, (float(number // 3),), number // 3, body))
    if has_header:
        rows += [(NUM_IMAGES + 1 + n, (3.0 * n + 1, 3.0 * n + 4), -1, b"") for n in range(4)]
    spans, content = [], b""
    for key, labels, label, body in rows:
        framed = frame(pack_record(key, labels, body))
        spans.append(Span(key, len(content), len(content) + len(framed), label, body))
        content += framed
    return Sample(content, tuple(spans))
