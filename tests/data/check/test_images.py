"""Images that are damaged, their JPEG markers and quality, and images that occur twice."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data.check.decoding import check_images, decoder_complains, image_fault, most_common_size, read_bytes
from gkd.data.check.duplicates import Duplicate, find_duplicates
from gkd.data.check.jpeg import Quality, jpeg_quality, scan_fault
from tests.data.check.damaged import small_jpeg
from tests.data.faces import make_image


def _encode(number: int, *settings: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", pixels, settings)[1])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_good_images(suffix: str) -> None:
    assert image_fault(make_image(1, (20, 16), suffix)) == (20, 16)


@pytest.mark.parametrize("settings", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_kinds_of_jpeg(settings: tuple[int, ...]) -> None:
    encoded = _encode(1, *settings)
    assert image_fault(encoded) == (32, 24)
    middle = encoded.rfind(b"\xff\xda") + 40
    for marker in (b"\xff\xc0", b"\xff\x01", b"\xff\xbf"):
        damaged = encoded[:middle] + marker + encoded[middle + 2 :]
        assert scan_fault(damaged) == f"marker {marker.hex()} stands among its pixels, at its byte {middle}"
    assert scan_fault(encoded[:-2]) == "the end of its pixels is missing"


def test_markers_of_damaged_jpegs() -> None:
    encoded = small_jpeg(1)
    assert scan_fault(encoded[:2] + b"\0" + encoded[3:]) == "no marker at its byte 2, where a segment must begin"
    assert scan_fault(encoded[:2] + b"\xff\xd9") == "it ends before its pixels"
    assert scan_fault(encoded[:2] + b"\xff" + encoded[2:]) is None  # a byte that fills
    assert scan_fault(encoded[:2] + b"\xff\xe0\x00") == "it is cut short in its header"


@pytest.mark.parametrize(
    ("encoded", "kind", "message"),
    [
        (b"", "no-image", "it has no image"),
        (b"GIF89a", "no-image", r"not a JPEG, PNG, BMP or WebP image \(begins with b'GIF89a'\)"),
        (small_jpeg(1)[:-30], "cut-short", "the jpeg image is cut short"),
        (make_image(1)[:-20], "cut-short", "the png image is cut short"),
        (small_jpeg(1)[:10], "damaged", "the jpeg image's header is damaged"),
        (make_image(1)[:60] + bytes(4) + make_image(1)[64:], "damaged", "the png image (cannot be decoded|is damaged)"),
    ],
)
def test_bad_images(encoded: bytes, kind: str, message: str) -> None:
    found = image_fault(encoded)
    assert found[0] == kind
    assert re.match(message, str(found[1]))


def test_the_decoder_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    assert decoder_complains()
    encoded = _encode(2)
    middle = encoded.rfind(b"\xff\xda") + 60
    kind, what = image_fault(encoded[:middle] + encoded[middle + 200 :])
    assert kind == "damaged"
    assert "Corrupt JPEG data" in str(what)
    assert image_fault(encoded) == (32, 24)  # nothing of the last complaint is left over
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_sizes_that_are_lies() -> None:
    encoded = bytearray(make_image(1))
    encoded[16:24] = (1 << 20).to_bytes(4, "big") * 2  # a small PNG that would unpack to terabytes
    assert image_fault(bytes(encoded)) == ("damaged", "the png image's header is damaged")


@pytest.mark.parametrize("num_workers", [None, 1, 2])
def test_many_images(num_workers: int | None) -> None:
    images = [small_jpeg(number) for number in range(600)]
    images[7], images[300], images[599] = b"", images[2], images[5] + b"\0"
    found = check_images(images, read_bytes, num_workers)
    assert [bad[:2] for bad in found.bad] == [(7, "no-image")]
    assert found.trailed == [599]
    assert found.sizes[7].tolist() == [0, 0]
    assert np.all(np.delete(found.sizes, 7, axis=0) == 16)
    assert most_common_size(found) == (16, 16)
    assert np.array_equal(found.digests[300], found.digests[2])
    assert len(np.unique(found.digests, axis=0)) == 599


def _die(encoded: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return encoded


def test_a_process_that_dies() -> None:
    with pytest.raises(DataError, match="a checking process died"):
        check_images([b""] * 10, _die, 2)


def test_workers_are_counted() -> None:
    with pytest.raises(ConfigError, match="--workers must be at least 1, got 0"):
        check_images([b""], read_bytes, 0)
    assert most_common_size(check_images([b""], read_bytes)) is None


def test_quality_at_every_setting() -> None:
    guesses = [jpeg_quality(_encode(1, cv2.IMWRITE_JPEG_QUALITY, quality)) for quality in range(1, 101)]
    assert guesses == [Quality(quality, True) for quality in range(1, 101)]


def test_quality_of_other_tables() -> None:
    encoded = bytearray(_encode(1, cv2.IMWRITE_JPEG_QUALITY, 80))
    encoded[encoded.find(b"\xff\xdb") + 8] += 1
    assert jpeg_quality(bytes(encoded)) == Quality(80, False)
    grey = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 70])[1].tobytes()
    assert jpeg_quality(grey) == Quality(70, True)
    assert jpeg_quality(make_image(1)) is None
    assert jpeg_quality(bytes(encoded[: encoded.find(b"\xff\xdb") + 20])) is None


def test_duplicates_against_all_pairs() -> None:
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 3, (60, 2)).astype(np.uint64)
    labels = rng.integers(0, 3, 60)
    expected = []
    for image in range(60):
        equal = [other for other in range(image) if np.array_equal(digests[other], digests[image])]
        if equal:
            expected.append(Duplicate(image, equal[0], any(labels[other] == labels[image] for other in equal)))
    assert find_duplicates(digests, labels) == expected
    assert find_duplicates(digests[:1], labels[:1]) == []
    assert find_duplicates(digests[:0], labels[:0]) == []


@pytest.mark.real
def test_real_faces_are_whole(real_data: Path) -> None:
    paths = sorted((real_data / "celeba").glob("*/*.jpg"))[:300]
    found = check_images([path.read_bytes() for path in paths], read_bytes)
    assert (found.bad, found.trailed, most_common_size(found)) == ([], [], (112, 112))
