"""Say what is in a weight file that holds no network of a known family: the nearest one, and what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from gkd.models.contents import shapes_of
from gkd.models.create import create_backbone
from gkd.models.families import describe_difference, describe_family
from gkd.models.layouts import Shapes
from gkd.models.weight_sources import Tensors

# One network of each depth that is published.
_CANDIDATES = (
    "iresnet18",
    "iresnet50",
    "iresnet100",
    "ir18",
    "ir50",
    "ir101",
    "mobilefacenet",
    "mobilefacenet_classic",
    "mobilefacenet_facex",
    "mobilefacenet_relu6",
)
_MIN_SHARE = 0.2
_MAX_GROUPS = 8


def describe_unknown(content: object, found: Tensors) -> str:
    """The file's keys, the prefix, the groups of names with their sizes, and how the nearest family differs."""
    shapes = shapes_of(found.network)
    parts = []
    if isinstance(content, dict) and found.container:
        parts.append(f"the keys {_named(map(str, content))}")
    if found.prefix:
        parts.append(f"the prefix `{found.prefix}`")
    groups = Counter(name.partition(".")[0] for name in shapes)
    parts.append(f"{len(shapes)} tensors: {_named(f'{group}.* {count}' for group, count in groups.most_common())}")
    return f"found {', '.join(parts)}; {_nearest(shapes)}"


def _nearest(shapes: Shapes) -> str:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        known = {name: shapes_of(create_backbone(name).state_dict()) for name in _CANDIDATES}
    shares = {
        name: len(shapes.keys() & other.keys()) / len(shapes.keys() | other.keys()) for name, other in known.items()
    }
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < _MIN_SHARE:
        return f"no family has such names; known are {', '.join(_CANDIDATES)} and others of their kind"
    return f"the nearest family is {describe_family(known[best])}, but {describe_difference(known[best], shapes)}"


def _named(names: Iterable[str]) -> str:
    listed = [name[:80] for name in names]
    more = f" and {len(listed) - _MAX_GROUPS} more" if len(listed) > _MAX_GROUPS else ""
    return ", ".join(listed[:_MAX_GROUPS]) + more
