"""Improved residual networks, 18 to 101 layers deep, in the layout of AdaFace, CVLface and TFace.

Source: Deng et al. 2019, "ArcFace", section 3.1; names and shapes of the tensors follow the three projects, so their
weights load. Against `iresnet` the blocks stand in one sequence, a block that keeps its channels has no projection even
where it halves the map, and the last BatchNorm has neither scale nor shift. Small members are ours.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from gkd.models.backbone import Backbone, check_integers, check_number, embed_in_full_precision
from gkd.models.iresnet import MAX_BLOCKS, Projection
from gkd.models.mobilefacenet import initialise_kaiming
from gkd.models.prelu import PReLU


class Subsampling(nn.Module):
    """Every stride-th pixel, as a maximum over windows of one pixel gives it; it holds no weights."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        return inputs if self.stride == 1 else inputs[:, :, :: self.stride, :: self.stride]


class Block(nn.Module):
    """One residual block: shortcut(x) + BN(conv(PReLU(BN(conv(BN(x)))))).

    The shortcut is a projection where the number of channels changes, else every stride-th pixel of x.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut_layer: nn.Module = Subsampling(stride)
        if in_channels != out_channels:
            projection = Projection(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut_layer = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        outputs: Tensor = self.shortcut_layer(inputs) + self.res_layer(inputs)
        return outputs


class IR(Backbone):
    """A stem, four layers of residual blocks that each halve the map, and a fully connected output.

    Args:
        layers: blocks in each of the four layers.
        embedding_dim: D.
        width_multiplier: scales the channels 64, 128, 256, 512.
        input_size: (H, W) in pixels.
        dropout: probability of zeroing a feature before the fully connected layer; the public weights were trained
            with 0.4.

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
        stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.input_layer = nn.Sequential(stem, nn.BatchNorm2d(width), PReLU(width))
        self.body = _body(width, num_blocks)
        height, breadth = self.final_size()
        linear = nn.Linear(8 * width * height * breadth, embedding_dim)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(8 * width),
            nn.Dropout(check_number("dropout", dropout, 0.0, 1.0)),
            nn.Flatten(),
            linear,
            nn.BatchNorm1d(embedding_dim, affine=False),
        )
        initialise_kaiming(self)
        nn.init.zeros_(linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to raw embeddings (N, D)."""
        norm, dropout, flatten, linear, last_norm = self.output_layer
        assert isinstance(linear, nn.Linear)
        assert isinstance(last_norm, nn.BatchNorm1d)
        features = flatten(dropout(norm(self.body(self.input_layer(images)))))
        return embed_in_full_precision(features, linear, last_norm)


def _body(width: int, num_blocks: tuple[int, ...]) -> nn.Sequential:
    """All blocks of all layers; the first of each layer halves the map."""
    blocks: list[Block] = []
    channel_pairs = pairwise([width, width, 2 * width, 4 * width, 8 * width])
    for (in_channels, channels), count in zip(channel_pairs, num_blocks, strict=True):
        blocks.append(Block(in_channels, channels, stride=2))
        blocks.extend(Block(channels, channels, stride=1) for _ in range(count - 1))
    return nn.Sequential(*blocks)


def ir18(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IR:
    """IR with layers 2-2-2-2; the arguments are those of `IR`."""
    return IR(
        layers=(2, 2, 2, 2),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )


def ir34(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IR:
    """IR with layers 3-4-6-3; the arguments are those of `IR`."""
    return IR(
        layers=(3, 4, 6, 3),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )


def ir50(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IR:
    """IR with layers 3-4-14-3; the arguments are those of `IR`."""
    return IR(
        layers=(3, 4, 14, 3),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )


def ir101(
    *,
    embedding_dim: int = 512,
    width_multiplier: float = 1.0,
    input_size: tuple[int, int] = (112, 112),
    dropout: float = 0.0,
) -> IR:
    """IR with layers 3-13-30-3; the arguments are those of `IR`."""
    return IR(
        layers=(3, 13, 30, 3),
        embedding_dim=embedding_dim,
        width_multiplier=width_multiplier,
        input_size=input_size,
        dropout=dropout,
    )
