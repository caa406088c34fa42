"""MobileFaceNet with the widths of its paper in the layout of FaceX-Zoo (1.20 M parameters).

Source: Chen et al. 2018, "MobileFaceNets", table 1; names and shapes of the tensors follow FaceX-Zoo, so its weights
load. Against `mobilefacenet_classic` the last three layers stand at the top, and the last BatchNorm is affine.
"""

from __future__ import annotations

from torch import Tensor, nn

from gkd.models.backbone import embed_in_full_precision
from gkd.models.mobilefacenet import initialise_kaiming
from gkd.models.mobilefacenet_classic import ClassicStages, Convolution


class MobileFaceNetFaceX(ClassicStages):
    """Inverted-residual stages of 4, 6 and 2 blocks with 64, 128, 128 channels, then 512.

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
        super().__init__(embedding_dim=embedding_dim, width_multiplier=width_multiplier, input_size=input_size)
        channels = self.final_channels
        self.conv_6_dw = Convolution(channels, channels, self.final_size(), groups=channels, is_linear=True)
        self.linear = nn.Linear(channels, embedding_dim, bias=False)
        self.bn = nn.BatchNorm1d(embedding_dim)
        initialise_kaiming(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to raw embeddings (N, D)."""
        return embed_in_full_precision(self.conv_6_dw(self.last_maps(images)).flatten(1), self.linear, self.bn)
