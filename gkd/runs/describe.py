"""What a run trained, in a few words from its config; a config of another version may lack any key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from gkd.core.yaml_lines import printable
from gkd.runs.config_leaves import Leaves, show_value

UNKNOWN = "-"
_MAX_LENGTH = 80


def describe(config: Leaves) -> Mapping[str, str]:
    """The words for `student`, `head`, `distillation` and `data`."""
    return {
        "student": printable(_student(config), _MAX_LENGTH),
        "head": printable(_head(config), _MAX_LENGTH),
        "distillation": printable(_distillation(config), _MAX_LENGTH),
        "data": printable(_data(config), _MAX_LENGTH),
    }


def _student(config: Leaves) -> str:
    parts = [_text(config, "backbone.name")]
    if "backbone.embedding_dim" in config:
        parts.append(f"{_text(config, 'backbone.embedding_dim')}-d")
    if config.get("backbone.width_multiplier", 1.0) not in (1, None):
        parts.append(f"width {_text(config, 'backbone.width_multiplier')}")
    return " ".join(parts)


def _head(config: Leaves) -> str:
    parts = [_text(config, "head.name")]
    if "margin.name" in config:
        parts.append(f"+ {_text(config, 'margin.name')}")
    if "margin.margin" in config:
        parts.append(_text(config, "margin.margin"))
    return " ".join(parts)


def _distillation(config: Leaves) -> str:
    """The losses with their weights and the teacher, such as `gkd x0.1 from iresnet100`; `none` without."""
    terms = []
    for place in range(20):
        name = config.get(f"distill.{place}.loss.name")
        if name is None:
            break
        weight = config.get(f"distill.{place}.weight", 1.0)
        factor = f"{weight:g}" if isinstance(weight, float) else show_value(weight)
        terms.append(show_value(name) + ("" if weight == 1.0 else f" x{factor}"))
    if not terms:
        return "none" if config else UNKNOWN
    return f"{' + '.join(terms)} from {_teacher(config)}"


def _teacher(config: Leaves) -> str:
    run, weights = config.get("teacher.run"), config.get("teacher.weights")
    named = config.get("teacher.backbone.name")
    if isinstance(run, str):
        name = _last_parts(run, 1)
    elif isinstance(named, str):
        name = _last_parts(named.removeprefix("onnx:"), 1) if named.startswith("onnx:") else named
    else:
        name = _last_parts(weights, 1) if isinstance(weights, str) else UNKNOWN
    is_cached = any(key.startswith("teacher.cache") and value is not None for key, value in config.items())
    return f"{name}, cached" if is_cached else name


def _data(config: Leaves) -> str:
    path = config.get("data.train.path")
    name = _last_parts(path, 2) if isinstance(path, str) else _text(config, "data.train.name")
    num_more = len({key.split(".")[2] for key in config if key.startswith("data.more.")})
    return f"{name} + {num_more} more" if num_more else name


def _text(config: Leaves, key: str) -> str:
    return show_value(config[key]) if config.get(key) is not None else UNKNOWN


def _last_parts(path: Any, count: int) -> str:
    return "/".join(PurePosixPath(str(path)).parts[-count:])
