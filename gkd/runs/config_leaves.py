"""A run's config as leaves: `optim.lr` → 0.1, `distill.0.loss.name` → "gkd"; a list of plain values is one leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.core.errors import DataError, GkdError
from gkd.core.files import read_bounded
from gkd.core.yaml_lines import printable, read_yaml

MAX_CONFIG_BYTES = 2**20
MAX_LEAVES = 2000
MAX_TEXT_LENGTH = 200

# Each run has its own, which is its name.
NOT_COMPARED = frozenset({"run.folder"})

ABSENT = "(absent)"
NOTHING = "-"

Leaves = Mapping[str, Any]


def read_leaves(path: Path) -> dict[str, Any]:
    """The leaves of a config file of any version.

    Raises:
        GkdError: it is missing, too large, no YAML, or no mapping.
    """
    try:
        text = read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text") from error
    try:
        value = read_yaml(text).value
    except GkdError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: is not a mapping of settings")
    leaves: dict[str, Any] = {}
    _collect(value, "", leaves)
    return leaves


def _collect(value: Any, key: str, leaves: dict[str, Any]) -> None:
    entries: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        entries = list(enumerate(value))
    if not entries:
        if len(leaves) < MAX_LEAVES:
            leaves[printable(key, MAX_TEXT_LENGTH)] = value
        return
    for name, entry in entries:
        _collect(entry, f"{key}.{name}" if key else str(name), leaves)


def show_value(value: Any) -> str:
    """A leaf as YAML would write it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return printable(f"[{', '.join(map(show_value, value[:50]))}]", MAX_TEXT_LENGTH)
    return printable(repr(value) if isinstance(value, float) else str(value), MAX_TEXT_LENGTH)


@dataclass(frozen=True)
class Difference:
    """A key in which runs differ: `values` are the texts, one a run.

    `is_of_version` where all runs that know the key agree: then the others may only be of another version.
    """

    key: str
    values: tuple[str, ...]
    is_of_version: bool


def differences(configs: Sequence[Leaves]) -> list[Difference]:
    """The keys in which `configs` differ, in the order of the largest config; those of some versions only come last."""
    largest_first = sorted(configs, key=len, reverse=True)
    keys = dict.fromkeys(key for config in largest_first for key in config)
    parents = {parent for key in keys for parent in _parents(key)}
    found = []
    for key in keys:
        values = tuple(_shown(config, key) for config in configs)
        # `teacher: null` is told by the rows of teacher.run and so on.
        if key not in NOT_COMPARED and key not in parents and len(set(values)) > 1:
            found.append(Difference(key, values, len(set(values) - {ABSENT}) == 1))
    return sorted(found, key=lambda one: one.is_of_version)


def _shown(config: Leaves, key: str) -> str:
    """The value, `-` within a section that the run switched off, `(absent)` where the config does not know the key."""
    if key in config:
        return show_value(config[key])
    return NOTHING if any(parent in config for parent in _parents(key)) else ABSENT


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]
