"""Format and size of an encoded image, read from its first bytes without decoding it."""

from __future__ import annotations

import struct

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA


def image_format(encoded: bytes) -> str | None:
    """The format, "jpeg", "png", "bmp" or "webp", or None for anything else."""
    if encoded[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if encoded[:2] == b"BM":
        return "bmp"
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp"
    return None


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels, or None where the header is of no known format or is damaged."""
    kind = image_format(encoded)
    if kind is None:
        return None
    try:
        return _SIZE_READERS[kind](encoded)
    except (struct.error, IndexError):
        return None


def is_whole(encoded: bytes) -> bool:
    """Whether the image's end is there. Decoders fill the missing part of a cut JPEG with grey and report nothing."""
    kind = image_format(encoded)
    if kind == "jpeg":
        # Inside a scan the bytes FF D9 cannot occur; a thumbnail with its own end lies before the frame.
        return encoded.rfind(b"\xff\xd9") > (_frame_offset(encoded) or 0)
    if kind == "png":
        return encoded.rfind(b"IEND") > 0
    if kind == "bmp":
        return len(encoded) >= 6 and len(encoded) >= int(struct.unpack_from("<I", encoded, 2)[0])
    if kind == "webp":
        return len(encoded) >= int(struct.unpack_from("<I", encoded, 4)[0]) + 8
    return False


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    offset = _frame_offset(encoded)
    if offset is None:
        return None
    height, width = struct.unpack_from(">HH", encoded, offset + 5)
    return height, width


def _frame_offset(encoded: bytes) -> int | None:
    offset = 2
    while offset + 4 <= len(encoded) and encoded[offset] == 0xFF:
        marker = encoded[offset + 1]
        if marker in _START_OF_FRAME:
            return offset
        if marker == _START_OF_SCAN:
            return None
        if marker == 0xFF:  # a fill byte
            offset += 1
            continue
        offset += 2 + int(struct.unpack_from(">H", encoded, offset + 2)[0])
    return None


def _png_size(encoded: bytes) -> tuple[int, int] | None:
    width, height = struct.unpack_from(">II", encoded, 16)
    return height, width


def _bmp_size(encoded: bytes) -> tuple[int, int] | None:
    width, height = struct.unpack_from("<ii", encoded, 18)
    return abs(height), width


def _webp_size(encoded: bytes) -> tuple[int, int] | None:
    chunk = encoded[12:16]
    if chunk == b"VP8X":
        width = int.from_bytes(encoded[24:27], "little") + 1
        return int.from_bytes(encoded[27:30], "little") + 1, width
    if chunk == b"VP8L":
        bits = int(struct.unpack_from("<I", encoded, 21)[0])
        return ((bits >> 14) & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", encoded, 26)
    return height & 0x3FFF, width & 0x3FFF


_SIZE_READERS = {"jpeg": _jpeg_size, "png": _png_size, "bmp": _bmp_size, "webp": _webp_size}
