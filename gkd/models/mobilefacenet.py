"""MobileFaceNet in the wider layout of insightface's `mbf` (2.06 M parameters).

Source: Chen et al. 2018, "MobileFaceNets", table 1, with the channels of the maps doubled (`scale` 2), blocks 1-4-6-2
and a grouped second convolution; names and shapes of the tensors follow insightface's arcface_torch, so its weights
load. Every part of this layout keeps its content in a sequence named `layers`.
"""

from __future__ import annotations

from torch import Tensor, nn

from gkd.models.backbone import Backbone, check_integer, check_integers, embed_in_full_precision
from gkd.models.convolution import Conv2d
from gkd.models.prelu import PReLU

FINAL_CHANNELS = 512
MAX_BLOCKS = 100
MAX_SCALE = 16


class Layers(nn.Module):
    """A sequence named `layers`; with `is_residual` its input is added to its output."""

    def __init__(self, *modules: nn.Module, is_residual: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)
        self.is_residual = is_residual

    def forward(self, inputs: Tensor) -> Tensor:
        """The content, one module after the other."""
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.is_residual else outputs


class GlobalDepthwise(nn.Module):
    """Feature maps (N, 512, h, w) to embeddings (N, D): one weight per channel and place, a linear layer, BatchNorm.

    Source: MobileFaceNets, section 3.2: a mean over the map would weigh the corners of a face like its centre.
    """

    def __init__(self, embedding_dim: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        weights = nn.Conv2d(FINAL_CHANNELS, FINAL_CHANNELS, map_size, groups=FINAL_CHANNELS, bias=False)
        linear = nn.Linear(FINAL_CHANNELS, embedding_dim, bias=False)
        depthwise = Layers(weights, nn.BatchNorm2d(FINAL_CHANNELS))
        self.layers = nn.ModuleList([depthwise, nn.Flatten(), linear, nn.BatchNorm1d(embedding_dim)])

    def forward(self, maps: Tensor) -> Tensor:
        """The last two layers run outside autocast."""
        depthwise, flatten, linear, norm = self.layers
        assert isinstance(linear, nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d)
        return embed_in_full_precision(flatten(depthwise(maps)), linear, norm)


class MobileFaceNet(Backbone):
    """Inverted-residual stages of width 64, 64, 128, 128 times `scale`.

    Args:
        embedding_dim: D.
        blocks: residual blocks in each of the four stages; where the first is 1, one grouped convolution stands there.
        scale: multiplies the channels between the blocks; the expanded channels inside them stay 128, 256, 512.
        input_size: (H, W) in pixels.

    Raises:
        ConfigError: a setting out of its range.
    """

    def __init__(
        self,
        *,
        embedding_dim: int = 512,
        blocks: tuple[int, int, int, int] = (1, 4, 6, 2),
        scale: int = 2,
        input_size: tuple[int, int] = (112, 112),
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, input_size=input_size)
        first, second, third, fourth = check_integers("blocks", blocks, 4, 1, MAX_BLOCKS)
        narrow = 64 * check_integer("scale", scale, 1, MAX_SCALE)
        wide = 2 * narrow
        start = _convolution(narrow, narrow, 3, groups=64) if first == 1 else _stage(narrow, 128, first)
        self.layers = nn.ModuleList(
            [
                _convolution(3, narrow, 3, stride=2),
                start,
                _inverted(narrow, 128, narrow, stride=2),
                _stage(narrow, 128, second),
                _inverted(narrow, 256, wide, stride=2),
                _stage(wide, 256, third),
                _inverted(wide, 512, wide, stride=2),
                _stage(wide, 256, fourth),
            ]
        )
        self.conv_sep = _convolution(wide, FINAL_CHANNELS, 1)
        self.features = GlobalDepthwise(embedding_dim, self.final_size())
        initialise_kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to raw embeddings (N, D)."""
        maps = images
        for layer in self.layers:
            maps = layer(maps)
        embeddings: Tensor = self.features(self.conv_sep(maps))
        return embeddings


def initialise_kaiming(network: nn.Module) -> None:
    """Draw all convolution and linear weights from N(0, 2 / fan_out) (He et al. 2015), as the public networks do."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Layers:
    convolution = Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return Layers(convolution, nn.BatchNorm2d(out_channels), PReLU(out_channels))


def _inverted(in_channels: int, expanded: int, out_channels: int, stride: int) -> Layers:
    projection = Layers(nn.Conv2d(expanded, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
    return Layers(
        _convolution(in_channels, expanded, 1),
        _convolution(expanded, expanded, 3, stride=stride, groups=expanded),
        projection,
        is_residual=stride == 1,
    )


def _stage(channels: int, expanded: int, num_blocks: int) -> Layers:
    return Layers(*(_inverted(channels, expanded, channels, stride=1) for _ in range(num_blocks)))
