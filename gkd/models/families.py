"""Which network a state dict comes from, told by the names and shapes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from gkd.models.layouts import Shapes, num_children, settings_of

PREFIXES = ("features.module.", "module.features.", "module.", "model.", "net.", "backbone.")

# What each family's networks have by default, and so is left out of an architecture.
DEFAULTS: dict[str, Any] = {
    "width_multiplier": 1.0,
    "scale": 2,
    "blocks": [1, 4, 6, 2],
    "input_size": [112, 112],
}


def known_prefix(names: Iterable[str]) -> str:
    """The known prefix that all `names` bear, or an empty string."""
    listed = list(names)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in listed):
            return prefix
    return ""


def describe_family(shapes: Shapes) -> str:
    """A network's family and size in words, for messages: `iresnet50 (475 tensors)`."""
    return f"{_family(shapes)} ({len(shapes)} tensors)"


def architecture_of(shapes: Shapes) -> dict[str, Any] | None:
    """What `create_backbone` takes to build the network these tensors are of; None where no family fits.

    It is a guess from a few tensors: whoever uses it compares all names and shapes with the network it built. Settings
    that no tensor shows (`dropout`, `input_pooling`) are left out, and so are those at their defaults; of the image
    size only its sixteenth, rounded up, shows, and of a fully connected layer only where height and width are equal.

    Args:
        shapes: any names and shapes, such as those of a file from anyone.
    """
    settings = settings_of(shapes)
    if settings is None or not _is_possible(settings):
        return None
    return {key: value for key, value in settings.items() if key not in DEFAULTS or value != DEFAULTS[key]}


def _is_possible(settings: dict[str, Any]) -> bool:
    """Whether no number is missing: a size of 0 stands where a tensor was not there or of another rank."""
    numbers = [value for value in settings.values() if not isinstance(value, str)]
    return all(number > 0 for value in numbers for number in (value if isinstance(value, list) else [value]))


def _family(shapes: Shapes) -> str:
    settings = settings_of(shapes)
    if settings is None:
        return _unknown(shapes)
    layers, usual = settings.get("layers"), 128 if "scale" in settings else 64
    width = 64 * settings.get("scale", 0) or round(64 * settings.get("width_multiplier", 0)) or usual
    name = settings["name"] if layers is None else f"{settings['name']} with layers {layers}"
    return str(name) if width == usual else f"{name} of width {width}"


def _unknown(shapes: Shapes) -> str:
    if "input_layer.0.weight" in shapes and any(name.startswith("body.") for name in shapes):
        return f"an IR network of the `input_layer.`/`body.` family with {num_children(shapes, 'body')} blocks"
    return "a network of no known family"


def describe_difference(expected: Shapes, given: Shapes) -> str:
    """What a strict load would refuse: missing and unexpected names by group, then shapes; empty where nothing."""
    wrong = [name for name in expected if name in given and expected[name] != given[name]]
    parts = [
        _grouped("missing", [name for name in expected if name not in given]),
        _grouped("unexpected", [name for name in given if name not in expected]),
        *(f"{name} has shape {list(given[name])}, expected {list(expected[name])}" for name in wrong[:5]),
        f"and {len(wrong) - 5} more of another shape" if len(wrong) > 5 else "",
    ]
    return "; ".join(part for part in parts if part)


def _grouped(what: str, names: list[str]) -> str:
    """`missing 20 tensors: layer3.* 18, fc.* 2`; at most eight groups are named."""
    if not names:
        return ""
    groups = Counter(name.partition(".")[0][:80] for name in names)
    listed = ", ".join(f"{group}.* {count}" for group, count in groups.most_common(8))
    more = f" and {len(groups) - 8} more groups" if len(groups) > 8 else ""
    return f"{what} {len(names)} tensors: {listed}{more}"
