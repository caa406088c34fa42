"""Build a backbone from its name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from gkd.core.errors import ConfigError
from gkd.models.backbone import Backbone
from gkd.models.ir import IR, ir18, ir34, ir50, ir101
from gkd.models.iresnet import IResNet, iresnet18, iresnet34, iresnet50, iresnet100, iresnet200
from gkd.models.mobilefacenet import MobileFaceNet
from gkd.models.mobilefacenet_classic import MobileFaceNetClassic
from gkd.models.mobilefacenet_facex import MobileFaceNetFaceX
from gkd.models.mobilefacenet_relu6 import MobileFaceNetReLU6
from gkd.models.onnx_backbone import OnnxBackbone
from gkd.models.timm_adapter import TimmBackbone

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "iresnet": IResNet,
    "iresnet18": iresnet18,
    "iresnet34": iresnet34,
    "iresnet50": iresnet50,
    "iresnet100": iresnet100,
    "iresnet200": iresnet200,
    "ir": IR,
    "ir18": ir18,
    "ir34": ir34,
    "ir50": ir50,
    "ir101": ir101,
    "mobilefacenet": MobileFaceNet,
    "mobilefacenet_classic": MobileFaceNetClassic,
    "mobilefacenet_facex": MobileFaceNetFaceX,
    "mobilefacenet_relu6": MobileFaceNetReLU6,
}

TIMM_PREFIX = "timm:"
ONNX_PREFIX = "onnx:"
# What follows the prefix, and the argument that takes it.
_PREFIXED: dict[str, tuple[Callable[..., Backbone], str]] = {
    TIMM_PREFIX: (TimmBackbone, "model"),
    ONNX_PREFIX: (OnnxBackbone, "path"),
}


def create_backbone(name: str, embedding_dim: int | None = None, **options: Any) -> Backbone:
    """Build a backbone with fresh weights; its `architecture` remembers the name and all settings.

    A network from an ONNX file comes with its own weights, frozen, and remembers nothing: it is no student.

    Args:
        name: a key of `BACKBONES`, `timm:` and the name of a timm network, or `onnx:` and the path of a file.
        embedding_dim: D; None is 512, or what the file of a network says.
        options: further settings of that backbone, such as `input_size` or `width_multiplier`.

    Raises:
        ConfigError: an unknown name or option, a setting out of its range, or one that a file contradicts.
        CheckpointError: a file that cannot be used.
    """
    given = options if embedding_dim is None else {"embedding_dim": embedding_dim, **options}
    build, settings = _settings(name, given)
    backbone = build(**settings)
    if not isinstance(backbone, OnnxBackbone):
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        backbone.architecture = {**plain, "name": name}
    return backbone


def _settings(name: str, given: dict[str, Any]) -> tuple[Callable[..., Backbone], dict[str, Any]]:
    """What builds the named backbone, and all its keyword arguments: those given, and the others' defaults."""
    build, fixed = _lookup(name)
    for key, value in fixed.items():
        if given.get(key, value) != value:
            raise ConfigError(f"backbone {name} takes its network from the name, got {key} {given[key]!r} too")
    signature, given = inspect.signature(build), {**fixed, **given}
    for option in given:
        if option not in signature.parameters:
            raise ConfigError(f"backbone {name} has no option {option!r}; it takes {', '.join(signature.parameters)}")
    try:
        bound = signature.bind(**given)
    except TypeError as error:
        raise ConfigError(f"backbone {name}: {error}") from error
    bound.apply_defaults()
    return build, dict(bound.arguments)


def _lookup(name: str) -> tuple[Callable[..., Backbone], dict[str, Any]]:
    """What builds the named backbone, and the argument that the name itself gives."""
    for prefix, (build, argument) in _PREFIXED.items():
        if name.startswith(prefix):
            return build, {argument: name.removeprefix(prefix)}
    if name in BACKBONES:
        return BACKBONES[name], {}
    nearest = difflib.get_close_matches(name, BACKBONES, n=1)
    known = f"known are {', '.join(BACKBONES)}, timm:<name> and onnx:<path>"
    raise ConfigError(f"unknown backbone {name!r}; {f'did you mean {nearest[0]!r}?' if nearest else known}")
