"""Improved residual networks for faces, 18 to 200 layers deep.

Source: Deng et al. 2019, "ArcFace", section 3.1 (BN-Conv-BN-PReLU-Conv-BN blocks, BN-Dropout-FC-BN output); names and
shapes of the tensors follow insightface's arcface_torch, so its weights load. Small members (narrower, fewer blocks,
smaller images) are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gkd.models.backbone import Backbone, check_integers, check_number, embed_in_full_precision
from gkd.models.prelu import PReLU

MAX_BLOCKS = 200


class Projection(nn.Conv2d):
    """A 1 x 1 convolution with a stride, on every stride-th pixel: the same numbers as the ordinary one.

    torch's own CPU kernel writes outside its memory in the backward pass of strided 1 x 1 convolutions of eight
    channels or fewer in channels-last order (seen with torch 2.15).
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        rows, columns = self.stride
        return F.conv2d(inputs[:, :, ::rows, ::columns], self.weight)


class Block(nn.Module):
    """One residual block: x + BN(conv(PReLU(BN(conv(BN(x)))))), with a projected x where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1:
            projection = Projection(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        outputs: Tensor = self.prelu(self.bn2(self.conv1(self.bn1(inputs))))
        outputs = self.bn3(self.conv2(outputs))
        return outputs + (inputs if self.downsample is None else self.downsample(inputs))


class IResNet(Backbone):
    """A stem, four layers of residual blocks that each halve the map, and a fully connected output.

    Args:
        layers: blocks in each of the four layers.
        embedding_dim: D.
        width_multiplier: scales the channels 64, 128, 256, 512.
        input_size: (H, W) in pixels.
        dropout: probability of zeroing a feature before the fully connected layer.

    Raises:
        ConfigError: a setting out of its range.
    """

    def __init__(
        self,
        *,
        layers: tuple[int, int, int, int],
        embedding_dim: int = 512,
        width_multiplier: float = 1.0,
        input_size: tuple[int, int] = (112, 112),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, input_size=input_size)
        num_blocks = check_integers("layers", layers, 4, 1, MAX_BLOCKS)
        width = round(64 * check_number("width_multiplier", width_multiplier, 0.0625, 8.0))
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = PReLU(width)
        self.layer1 = _layer(width, width, num_blocks[0])
        self.layer2 = _layer(width, 2 * width, num_blocks[1])
        self.layer3 = _layer(2 * width, 4 * width, num_blocks[2])
        self.layer4 = _layer(4 * width, 8 * width, num_blocks[3])
        self.bn2 = nn.BatchNorm2d(8 * width)
        self.dropout = nn.Dropout(check_number("dropout", dropout, 0.0, 1.0))
        height, breadth = self.final_size()
        self.fc = nn.Linear(8 * width * height * breadth, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        # Heads normalise the embedding, so a learned scale per dimension is fixed at 1, as the public weights have it.
        self.features.weight.requires_grad_(False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to raw embeddings (N, D)."""
        maps = self.prelu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        features = self.dropout(torch.flatten(self.bn2(maps), 1))
        return embed_in_full_precision(features, self.fc, self.features)


def _layer(in_channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
    rest = [Block(out_channels, out_channels, stride=1) for _ in range(num_blocks - 1)]
    return nn.Sequential(Block(in_channels, out_channels, stride=2), *rest)


def iresnet18(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IResNet:
    """IResNet with layers 2-2-2-2; the arguments are those of `IResNet`."""
    return IResNet(
        layers=(2, 2, 2, 2),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )


def iresnet34(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IResNet:
    """IResNet with layers 3-4-6-3; the arguments are those of `IResNet`."""
    return IResNet(
        layers=(3, 4, 6, 3),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )


def iresnet50(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IResNet:
    """IResNet with layers 3-4-14-3; the arguments are those of `IResNet`."""
    return IResNet(
        layers=(3, 4, 14, 3),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )


def iresnet100(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IResNet:
    """IResNet with layers 3-13-30-3; the arguments are those of `IResNet`."""
    return IResNet(
        layers=(3, 13, 30, 3),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )


def iresnet200(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IResNet:
    """IResNet with layers 6-26-60-6; the arguments are those of `IResNet`."""
    return IResNet(
        layers=(6, 26, 60, 6),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )
