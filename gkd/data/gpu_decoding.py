"""Decoding JPEG images on a CUDA device with nvJPEG, through torchvision.

nvJPEG rounds otherwise than libjpeg: pixels differ by a few steps of 255 from those of `decode_image`. What it would
decode to something else altogether (other formats, CMYK, images to be turned by their Exif data) is left to the CPU.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkd.core.errors import ConfigError

# Encoded images uint8 (B,) on the CPU -> uint8 (3, H, W), RGB, on a device.
Decoder = Callable[[list[Tensor]], list[Tensor]]

_log = logging.getLogger(__name__)
_FRAME_BYTES = 10
_PLAIN_SEGMENTS = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xFE})


def can_gpu_decode(encoded: bytes) -> bool:
    """Whether this is a baseline or progressive JPEG, grey or YCbCr, with no Exif or Adobe segment before its frame."""
    if encoded[:2] != b"\xff\xd8":
        return False
    offset = 2
    while offset + _FRAME_BYTES <= len(encoded) and encoded[offset] == 0xFF:
        marker = encoded[offset + 1]
        if 0xC0 <= marker <= 0xC2:
            return encoded[offset + 4] == 8 and encoded[offset + 9] in (1, 3)
        if marker not in _PLAIN_SEGMENTS:
            return False
        offset += 2 + int.from_bytes(encoded[offset + 2 : offset + 4], "big")
    return False


def nvjpeg_decoder(device: torch.device) -> Decoder:
    """The decoder of torchvision on `device`.

    Raises:
        ConfigError: torchvision is not installed, or has no decoder.
    """
    io = _torchvision_io()

    def decode(encoded: list[Tensor]) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision announces that its decoders will move
            return list(io.decode_jpeg(encoded, mode=io.ImageReadMode.RGB, device=device))

    return decode


def decode_rows(
    images: npt.NDArray[np.uint8], encoded_bytes: npt.NDArray[np.int64], decode: Decoder, device: torch.device
) -> Tensor:
    """A micro-batch of which some rows are encoded.

    Args:
        images: uint8 (N, H, W, 3); the beginning of an encoded row is the encoded image.
        encoded_bytes: int64 (N,), the length of each encoded image, 0 for pixels.
        decode: decodes the encoded ones.
        device: where the result is to be.

    Returns:
        uint8 (N, H, W, 3), RGB.
    """
    encoded = np.flatnonzero(encoded_bytes)
    # The whole copy also brings the encoded rows, which are overwritten: one copy is faster than many.
    result = torch.from_numpy(images).to(device)
    if device.type == "cpu":
        result = result.clone()
    if not len(encoded):
        return result
    rows = images.reshape(len(images), -1)
    decoded = decode([torch.from_numpy(rows[row, : encoded_bytes[row]]) for row in encoded])
    result[torch.from_numpy(encoded).to(device)] = torch.stack(decoded).permute(0, 2, 3, 1).to(device)
    return result


def _torchvision_io() -> ModuleType:
    try:
        io = importlib.import_module("torchvision.io")
    except ImportError as error:
        raise ConfigError(f'decode="gpu" needs torchvision ({error}); install it, or use decode="cpu"') from error
    if not hasattr(io, "decode_jpeg"):
        raise ConfigError(
            'decode="gpu" needs a torchvision with decode_jpeg; install an older one, or use decode="cpu"'
        )
    return io
