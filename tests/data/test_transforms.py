"""Decoding and mirroring."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.data import decode_image, transforms
from gkd.data.image_header import image_format, image_size, is_whole
from tests.data.faces import make_image

SUFFIXES = [".png", ".bmp", ".webp", ".jpg"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_colours_come_in_rgb_order(suffix: str) -> None:
    bgr = np.zeros((8, 12, 3), dtype=np.uint8)
    bgr[..., 0] = 250  # blue
    pixels = decode_image(bytes(cv2.imencode(suffix, bgr)[1]), (8, 12), "x")
    assert pixels.shape == (8, 12, 3)
    assert pixels.dtype == np.uint8
    assert pixels[..., 2].min() > 230
    assert pixels[..., :2].max() < 20


def test_lossless_pixels_come_back_and_fill_the_given_array() -> None:
    bgr = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    out = np.zeros((5, 7, 3), dtype=np.uint8)
    pixels = decode_image(bytes(cv2.imencode(".png", bgr)[1]), (5, 7), "x", out)
    assert np.shares_memory(pixels, out)
    assert np.array_equal(out, bgr[..., ::-1])


def test_grey_and_transparent_images_become_rgb() -> None:
    for pixels in (np.full((4, 4), 9, dtype=np.uint8), np.full((4, 4, 4), 9, dtype=np.uint8)):
        assert decode_image(bytes(cv2.imencode(".png", pixels)[1]), (4, 4), "x").tolist() == [[[9] * 3] * 4] * 4


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_headers(suffix: str) -> None:
    encoded = make_image(0, (20, 30), suffix)
    assert image_format(encoded) == {".jpg": "jpeg"}.get(suffix, suffix[1:])
    assert image_size(encoded) == (20, 30)
    assert is_whole(encoded)
    assert image_size(encoded[:10]) is None


def test_lossy_webp_and_progressive_jpeg_headers() -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    assert image_size(bytes(cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, 50])[1])) == (20, 30)
    assert image_size(bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1])) == (20, 30)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_images_are_refused(suffix: str) -> None:
    encoded = make_image(0, (40, 40), suffix)
    for length in range(0, len(encoded) - 2, 37):
        with pytest.raises(DataError, match=r"^the place: "):
            decode_image(encoded[:length], (40, 40), "the place")


def test_a_jpeg_cut_in_its_pixels_is_named_so() -> None:
    encoded = make_image(0, (40, 40), ".jpg")
    with pytest.raises(DataError, match="the place: the jpeg image is cut short; replace or remove it"):
        decode_image(encoded[:-20], (40, 40), "the place")


def test_a_thumbnails_end_is_not_the_images_end() -> None:
    encoded = make_image(0, (40, 40), ".jpg")
    thumbnail = b"\xff\xe1" + struct.pack(">H", 6) + b"\xff\xd9ab"
    with_thumbnail = encoded[:2] + thumbnail + encoded[2:]
    assert decode_image(with_thumbnail, (40, 40), "x").shape == (40, 40, 3)
    assert is_whole(with_thumbnail + b"\0\0\0")
    assert not is_whole(with_thumbnail[:-2])


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "the place: the image is empty"),
        (b"<html>", "the place: not a JPEG, PNG, BMP or WebP image .begins with b'<html>'"),
        (b"\xff\xd8\xff\xd9", "the place: the jpeg image's header is damaged"),
        (make_image(0, (20, 30)), "the place: the image is 20x30 pixels .height x width., but 16x16 is needed; align"),
        (make_image(0)[:60] + bytes(200) + make_image(0)[260:], "the place: the png image is damaged"),
    ],
)
def test_what_cannot_be_decoded(encoded: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_image(encoded, (16, 16), "the place")


def test_a_huge_image_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", fail)
    encoded = bytearray(make_image(0))
    struct.pack_into(">II", encoded, 16, 60_000, 60_000)
    with pytest.raises(DataError, match="the image is 60000x60000 pixels"):
        decode_image(bytes(encoded), (16, 16), "x")


def test_a_header_seen_before_hides_nothing() -> None:
    """Headers are compared with the last good one; what follows them is still looked at."""
    rng = np.random.default_rng(0)
    images = [bytes(cv2.imencode(".jpg", rng.integers(0, 256, (24, 16, 3), dtype=np.uint8))[1]) for _ in range(3)]
    for encoded in images * 2:
        expected = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.array_equal(decode_image(encoded, (24, 16), "x"), expected)
        with pytest.raises(DataError, match="the place: the image is 24x16 pixels"):
            decode_image(encoded, (16, 24), lambda: "the place")
        with pytest.raises(DataError, match="the place: the jpeg image is cut short"):
            decode_image(encoded[:-20], (24, 16), lambda: "the place")
        frame = encoded.index(b"\xff\xc0")
        huge = encoded[: frame + 5] + b"\xff\xff\xff\xff" + encoded[frame + 9 :]
        with pytest.raises(DataError, match="the image is 65535x65535 pixels"):
            decode_image(huge, (24, 16), "x")


def test_an_older_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = make_image(0)
    expected = decode_image(encoded, (16, 16), "x")
    monkeypatch.setattr(transforms, "_COLOR_RGB", None)
    assert np.array_equal(decode_image(encoded, (16, 16), "x"), expected)
