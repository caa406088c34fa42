"""MobileFaceNet with the widths of its paper and a 512-dimensional output (1.20 M parameters).

Source: Chen et al. 2018, "MobileFaceNets", table 1; names and shapes of the tensors follow TFace and AdaDistill, so
their weights load.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gkd.models.backbone import Backbone, check_integer, check_number, embed_in_full_precision
from gkd.models.convolution import Conv2d
from gkd.models.mobilefacenet import initialise_kaiming
from gkd.models.prelu import PReLU


class Convolution(nn.Module):
    """Convolution, BatchNorm and, unless `is_linear`, PReLU; a (height, width) kernel is not padded, an odd one is."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        groups: int = 1,
        is_linear: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if isinstance(kernel, int) else 0
        self.conv = Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.prelu: nn.Module | None = None if is_linear else PReLU(out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        outputs: Tensor = self.bn(self.conv(inputs))
        return outputs if self.prelu is None else self.prelu(outputs)


class InvertedBlock(nn.Module):
    """Expand the channels, convolve each by itself, project back; at stride 1 the input is added."""

    def __init__(self, in_channels: int, expanded: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = Convolution(in_channels, expanded, 1)
        self.conv_dw = Convolution(expanded, expanded, 3, stride=stride, groups=expanded)
        self.project = Convolution(expanded, out_channels, 1, is_linear=True)
        self.is_residual = stride == 1

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        outputs: Tensor = self.project(self.conv_dw(self.conv(inputs)))
        return inputs + outputs if self.is_residual else outputs


class Stage(nn.Module):
    """Inverted blocks of one width, in a sequence named `model`."""

    def __init__(self, channels: int, expanded: int, num_blocks: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(InvertedBlock(channels, expanded, channels) for _ in range(num_blocks)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps to feature maps of the same shape."""
        outputs: Tensor = self.model(inputs)
        return outputs


class OutputLayer(nn.Module):
    """Feature maps (N, C, h, w) to embeddings (N, D): one weight per channel and place, a linear layer, BatchNorm.

    The BatchNorm has neither scale nor shift.
    """

    def __init__(self, channels: int, embedding_dim: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.conv_6_dw = Convolution(channels, channels, map_size, groups=channels, is_linear=True)
        self.linear = nn.Linear(channels, embedding_dim, bias=False)
        self.bn = nn.BatchNorm1d(embedding_dim, affine=False)

    def forward(self, maps: Tensor) -> Tensor:
        """The linear layer and the last BatchNorm run outside autocast."""
        return embed_in_full_precision(self.conv_6_dw(maps).flatten(1), self.linear, self.bn)


class ClassicStages(Backbone):
    """Inverted-residual stages of 4, 6 and 2 blocks with 64, 128, 128 channels, then 512; an output follows."""

    def __init__(self, *, embedding_dim: int, width_multiplier: float, input_size: tuple[int, int]) -> None:
        super().__init__(embedding_dim=embedding_dim, input_size=input_size)
        width = round(64 * check_number("width_multiplier", width_multiplier, 0.0625, 8.0))
        self.final_channels = 8 * width
        self.conv1 = Convolution(3, width, 3, stride=2)
        self.conv2_dw = Convolution(width, width, 3, groups=width)
        self.conv_23 = InvertedBlock(width, 2 * width, width, stride=2)
        self.conv_3 = Stage(width, 2 * width, 4)
        self.conv_34 = InvertedBlock(width, 4 * width, 2 * width, stride=2)
        self.conv_4 = Stage(2 * width, 4 * width, 6)
        self.conv_45 = InvertedBlock(2 * width, 8 * width, 2 * width, stride=2)
        self.conv_5 = Stage(2 * width, 4 * width, 2)
        self.conv_6_sep = Convolution(2 * width, self.final_channels, 1)

    def last_maps(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to the maps (N, C, ceil(H / 16), ceil(W / 16)) that the output takes."""
        maps = self.conv2_dw(self.conv1(images))
        maps = self.conv_4(self.conv_34(self.conv_3(self.conv_23(maps))))
        outputs: Tensor = self.conv_6_sep(self.conv_5(self.conv_45(maps)))
        return outputs


class MobileFaceNetClassic(ClassicStages):
    """Inverted-residual stages of 4, 6 and 2 blocks with 64, 128, 128 channels, then 512.

    Args:
        embedding_dim: D.
        width_multiplier: scales all channels.
        input_size: (H, W) in pixels.
        input_pooling: average squares of so many pixels first: 2 makes a network for images of half the size that
            takes, and is compared on, whole ones, at about a quarter of the time.

    Raises:
        ConfigError: a setting out of its range.
    """

    def __init__(
        self,
        *,
        embedding_dim: int = 512,
        width_multiplier: float = 1.0,
        input_size: tuple[int, int] = (112, 112),
        input_pooling: int = 1,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, width_multiplier=width_multiplier, input_size=input_size)
        self.input_pooling = check_integer("input_pooling", input_pooling, 1, 4)
        self.output_layer = OutputLayer(self.final_channels, embedding_dim, self.final_size(self.input_pooling))
        initialise_kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to raw embeddings (N, D)."""
        if self.input_pooling > 1:
            images = F.avg_pool2d(images, self.input_pooling)
        embeddings: Tensor = self.output_layer(self.last_maps(images))
        return embeddings
