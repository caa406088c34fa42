"""Networks of the timm library as backbones: `timm:<name>`."""

from __future__ import annotations

import difflib
import re
from typing import Any

from torch import Tensor, nn

from gkd.core.errors import ConfigError
from gkd.models.backbone import Backbone, check_number, full_precision


class TimmBackbone(Backbone):
    """A timm network whose classifier makes the embedding, then BatchNorm; always with fresh weights.

    Args:
        model: timm's name of the network, without a source such as `hf-hub:`, so nothing is ever downloaded.
        embedding_dim: D.
        input_size: (H, W) in pixels.
        drop_rate: dropout before the last layer.
        drop_path_rate: probability of skipping a residual branch.

    Raises:
        ConfigError: an unknown network, or one that does not take a setting.
    """

    def __init__(
        self,
        *,
        model: str,
        embedding_dim: int = 512,
        input_size: tuple[int, int] = (112, 112),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, input_size=input_size)
        self.net = _create(
            model,
            embedding_dim,
            self.input_size,
            check_number("drop_rate", drop_rate, 0.0, 1.0),
            check_number("drop_path_rate", drop_path_rate, 0.0, 1.0),
        )
        self.features = nn.BatchNorm1d(embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to raw embeddings (N, D)."""
        embeddings = self.net(images)
        with full_precision(images.device):
            normalised: Tensor = self.features(embeddings.to(self.features.weight.dtype))
        return normalised


def _create(
    name: str, embedding_dim: int, input_size: tuple[int, int], drop_rate: float, drop_path_rate: float
) -> nn.Module:
    # timm takes seconds to import, and most runs do not need it.
    import timm

    if not re.fullmatch(r"[a-zA-Z0-9_]+", name) or not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean timm:{nearest[0]}?" if nearest else ""
        raise ConfigError(f"timm {timm.__version__} has no network {name!r}{hint}")
    options: dict[str, Any] = {"drop_rate": drop_rate} if drop_rate else {}
    options |= {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    defaults = timm.get_pretrained_cfg(name)
    if defaults is not None and defaults.fixed_input_size:
        options["img_size"] = input_size
    try:
        network = timm.create_model(name, pretrained=False, num_classes=embedding_dim, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"timm:{name} cannot be built with {options}: {error}") from error
    assert isinstance(network, nn.Module)
    return network
