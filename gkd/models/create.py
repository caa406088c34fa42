"""Build a backbone from its name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from gkd.core.errors import ConfigError
from gkd.models.backbone import Backbone
from gkd.models.iresnet import IResNet, iresnet18, iresnet34, iresnet50, iresnet100, iresnet200
from gkd.models.mobilefacenet import MobileFaceNet
from gkd.models.mobilefacenet_classic import MobileFaceNetClassic
from gkd.models.timm_adapter import TimmBackbone

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "iresnet": IResNet,
    "iresnet18": iresnet18,
    "iresnet34": iresnet34,
    "iresnet50": iresnet50,
    "iresnet100": iresnet100,
    "iresnet200": iresnet200,
    "mobilefacenet": MobileFaceNet,
    "mobilefacenet_classic": MobileFaceNetClassic,
}

TIMM_PREFIX = "timm:"


def create_backbone(name: str, embedding_dim: int = 512, **options: Any) -> Backbone:
    """Build a backbone with fresh weights; its `architecture` remembers the name and all settings.

    Args:
        name: a key of `BACKBONES`, or `timm:` and the name of a timm network.
        embedding_dim: D.
        options: further settings of that backbone, such as `input_size` or `width_multiplier`.

    Raises:
        ConfigError: an unknown name or option, or a setting out of its range.
    """
    settings = _settings(name, {"embedding_dim": embedding_dim, **options})
    backbone = TimmBackbone(**settings) if name.startswith(TIMM_PREFIX) else BACKBONES[name](**settings)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    backbone.architecture = {**plain, "name": name}
    return backbone


def _settings(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All keyword arguments of the named backbone: those given, and the defaults of the others."""
    if name.startswith(TIMM_PREFIX):
        if given.get("model", model := name.removeprefix(TIMM_PREFIX)) != model:
            raise ConfigError(f"backbone {name} takes its network from the name, got model {given['model']!r} too")
        signature, given = inspect.signature(TimmBackbone), {"model": model, **given}
    else:
        signature = inspect.signature(_lookup(name))
    for option in given:
        if option not in signature.parameters:
            raise ConfigError(f"backbone {name} has no option {option!r}; it takes {', '.join(signature.parameters)}")
    try:
        bound = signature.bind(**given)
    except TypeError as error:
        raise ConfigError(f"backbone {name}: {error}") from error
    bound.apply_defaults()
    return dict(bound.arguments)


def _lookup(name: str) -> Callable[..., Backbone]:
    if name in BACKBONES:
        return BACKBONES[name]
    nearest = difflib.get_close_matches(name, BACKBONES, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(BACKBONES)} and timm:<name>"
    raise ConfigError(f"unknown backbone {name!r}; {hint}")
