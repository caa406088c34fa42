"""Resampling with other weights for each image, in whole numbers.

A weight is a multiple of 2^-11, as in OpenCV's own resizing. Pixels times weights then sum to whole numbers below 2^24,
which float32 holds exactly: a matrix product gives the same bits in any order, batch and device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ONE = 2048
# Weights before they are divided by their sum.
_FINE = 4096
# Between the two passes pixels keep 3 bits after the point; bicubic overshoots twice by less than 2 leave 24 bits.
_BETWEEN = 8
_CUBIC = -0.75

# Pixels of the result and of the source, (M, 1, 1) each.
Counts = tuple[Tensor, Tensor]


def nearest(position: Tensor, source: Tensor, counts: Counts) -> Tensor:
    """1 for the source pixel in which the centre lies; on a border, the second."""
    return (_scaled(position + 0.5, counts).floor_() == source).float()


def bilinear(position: Tensor, source: Tensor, counts: Counts) -> Tensor:
    """A triangle over the two source pixels around the centre, however many lie under the result's pixel."""
    return (1 - (_scaled(position + 0.5, counts) - 0.5 - source).abs_()).clamp_min_(0)


def area(position: Tensor, source: Tensor, counts: Counts) -> Tensor:
    """The length that the source pixel shares with the result's pixel."""
    end = torch.minimum(_scaled(position + 1, counts), source + 1)
    return end.sub_(torch.maximum(_scaled(position, counts), source)).clamp_min_(0)


def bicubic(position: Tensor, source: Tensor, counts: Counts) -> Tensor:
    """Keys' cubic convolution over the four source pixels around the centre, with a = -0.75."""
    x = (_scaled(position + 0.5, counts) - 0.5 - source).abs_()
    near = ((x * (_CUBIC + 2) - (_CUBIC + 3)) * x * x) + 1
    far = ((x * _CUBIC - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _scaled(position: Tensor, counts: Counts) -> Tensor:
    """A place in the result as one in the source; exact where that is a whole number, so that ties fall one way."""
    num_out, num_in = counts
    return position * num_in / num_out


KERNELS = (nearest, bilinear, area, bicubic)


def whole_weights(weights: Tensor) -> Tensor:
    """Weights (M, L_out, L_in) divided by the sum of their row, as multiples of 2^-11 times 2^11.

    What rounding leaves over goes to the largest weight of the row (the first of them), so that rows sum to 2^11 and
    an even grey stays what it is. Rows of zeros stay zero.
    """
    fine = (weights * _FINE).round_()
    total = fine.sum(dim=2, keepdim=True)
    rounded = fine.mul_(_ONE).div_(total.clamp_min(1)).round_()
    left_over = _ONE * (total > 0) - rounded.sum(dim=2, keepdim=True)
    return rounded.scatter_add_(2, rounded.argmax(dim=2, keepdim=True), left_over)


def axis_weights(kernel: Tensor, num_out: Tensor, num_in: Tensor, length: int) -> Tensor:
    """Weights that bring `num_in` pixels to `num_out`, in multiples of 2^-11 times 2^11, padded with zeros.

    Args:
        kernel: (M,), on the CPU, the place in `KERNELS`.
        num_out: float32 (M,) on the device, whole numbers up to `length`.
        num_in: the same of the source.

    Returns:
        float32 (M, length, length): row i has the weights of the source pixels for pixel i of the result.
    """
    pixel = torch.arange(length, device=num_out.device, dtype=torch.float32)
    result = torch.empty(len(kernel), length, length, device=num_out.device)
    for place, function in enumerate(KERNELS):
        rows = (kernel == place).nonzero()[:, 0]
        if not len(rows):
            continue
        rows = rows.to(num_out.device, non_blocking=True)
        count_out, count_in = num_out[rows].view(-1, 1, 1), num_in[rows].view(-1, 1, 1)
        weights = function(pixel[:, None], pixel, (count_out, count_in))
        is_real = (pixel[:, None] < count_out) & (pixel < count_in)
        result.index_copy_(0, rows, whole_weights(weights * is_real))
    return result


def crop_weights(start: Tensor, extent: Tensor, length: int) -> Tensor:
    """Bilinear weights, as of `axis_weights`, of the stretch from `start` over `extent` pixels brought to `length`.

    Args:
        start: float32 (M,), in pixels.
        extent: float32 (M,), in pixels.
    """
    pixel = torch.arange(length, device=start.device, dtype=torch.float32)
    start, extent = start.view(-1, 1, 1), extent.view(-1, 1, 1)
    centre = (pixel[:, None] + 0.5) * (extent / length) + (start - 0.5)
    return whole_weights((1 - (centre - pixel).abs_()).clamp_min_(0))


def after(second: Tensor, first: Tensor) -> Tensor:
    """The weights of resampling with `first` and then with `second`, all (M, L, L)."""
    return whole_weights((second @ first) / _ONE**2)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 (M, 3, H, W) from images of that shape; `rows` (M, H, H) and `columns` (M, W, W) are whole weights."""
    num_images, num_channels, height, width = images.shape
    wide = images.float().reshape(num_images, -1, width) @ columns.mT
    wide = wide.mul_(_BETWEEN / _ONE).round_().view(images.shape).mT
    both = wide.reshape(num_images, -1, height) @ rows.mT
    both = both.mul_(1 / (_BETWEEN * _ONE)).round_().clamp_(0, 255)
    return both.to(torch.uint8).view(num_images, num_channels, width, height).mT
