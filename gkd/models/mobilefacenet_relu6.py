"""MobileFaceNet of inverted residual blocks with ReLU6 (1.00 M parameters at 128 dimensions).

Source: Chen et al. 2018, "MobileFaceNets", table 1, on the blocks of Sandler et al. 2018, "MobileNetV2", with ReLU6
where the paper has PReLU; names and shapes of the tensors follow foamliu's MobileFaceNet, whose public network has
`embedding_dim` 128, so its weights load. Wider and narrower members are ours.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gkd.models.backbone import Backbone, check_number, embed_in_full_precision
from gkd.models.convolution import Conv2d
from gkd.models.mobilefacenet import initialise_kaiming

# Expansion, output channels as a multiple of the first width, blocks, stride of the first block.
STAGES = ((2, 1, 5, 2), (4, 2, 1, 2), (2, 2, 6, 1), (4, 2, 1, 2), (2, 2, 2, 1))


class DepthwiseSeparable(nn.Module):
    """A 3 x 3 convolution of each channel by itself, then a 1 x 1 over all, each with BatchNorm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps to feature maps of the same shape."""
        outputs = F.relu(self.bn1(self.depthwise(inputs)))
        return F.relu(self.bn2(self.pointwise(outputs)))


class InvertedResidual(nn.Module):
    """Expand the channels, convolve each by itself, project back; the input is added where its shape is kept."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        expanded = expansion * in_channels
        self.conv = nn.Sequential(
            _convolution(in_channels, expanded, 1),
            _convolution(expanded, expanded, 3, stride=stride, groups=expanded),
            nn.Conv2d(expanded, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        outputs: Tensor = self.conv(inputs)
        return inputs + outputs if self.is_residual else outputs


class GlobalDepthwise(nn.Module):
    """Feature maps (N, C, h, w) to (N, C, 1, 1): one weight per channel and place, then BatchNorm."""

    def __init__(self, channels: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, map_size, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """No activation follows."""
        outputs: Tensor = self.bn(self.depthwise(maps))
        return outputs


class PointLinear(nn.Linear):
    """A linear layer whose weight is that of a 1 x 1 convolution, (D, F, 1, 1)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(self.weight.detach()[:, :, None, None])

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, F) to (N, D)."""
        return F.linear(features, self.weight.flatten(1), self.bias)


class MobileFaceNetReLU6(Backbone):
    """Inverted residual blocks, 5 of 64 channels and 10 of 128, then 512.

    Args:
        embedding_dim: D.
        width_multiplier: scales all channels.
        input_size: (H, W) in pixels.

    Raises:
        ConfigError: a setting out of its range.
    """

    def __init__(
        self,
        *,
        embedding_dim: int = 512,
        width_multiplier: float = 1.0,
        input_size: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, input_size=input_size)
        width = round(64 * check_number("width_multiplier", width_multiplier, 0.0625, 8.0))
        self.conv1 = _convolution(3, width, 3, stride=2)
        self.dw_conv = DepthwiseSeparable(width)
        self.features = _features(width)
        self.conv2 = _convolution(2 * width, 8 * width, 1)
        self.gdconv = GlobalDepthwise(8 * width, self.final_size())
        self.conv3 = PointLinear(8 * width, embedding_dim)
        self.bn = nn.BatchNorm1d(embedding_dim)
        initialise_kaiming(self)
        nn.init.zeros_(self.conv3.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to raw embeddings (N, D)."""
        maps = self.conv2(self.features(self.dw_conv(self.conv1(images))))
        return embed_in_full_precision(self.gdconv(maps).flatten(1), self.conv3, self.bn)


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6())


def _features(width: int) -> nn.Sequential:
    blocks: list[InvertedResidual] = []
    in_channels = width
    for expansion, factor, num_blocks, first_stride in STAGES:
        for index in range(num_blocks):
            stride = first_stride if index == 0 else 1
            blocks.append(InvertedResidual(in_channels, factor * width, expansion, stride))
            in_channels = factor * width
    return nn.Sequential(*blocks)
