"""`key.path=VALUE` arguments laid over a configuration file, cited as the command line in messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gkd.core.yaml_lines import Document, KeyPath, Mistake, YamlError, dotted, printable, read_yaml

COMMAND_LINE = 0


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each `key.path=VALUE` in `document`, VALUE being YAML; what cannot be set is noted as a mistake.

    Missing mappings on the way are created. In a list an index names an entry, and its length adds one. A Part that
    the file gives as a bare name becomes a mapping with `name`. Of two values for one key the last counts.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            document.mistakes.append(Mistake(COMMAND_LINE, "", f"`{printable(override)}` is not key.path=value"))
            continue
        _apply(document, key, text)


def _apply(document: Document, key: str, text: str) -> None:
    try:
        parsed = read_yaml(text)
        if parsed.mistakes:
            raise YamlError(parsed.mistakes[0].text, 1)
        _set(document, tuple(key.split(".")), parsed.value)
    except YamlError as error:
        document.mistakes.append(Mistake(COMMAND_LINE, printable(key), error.mistake.text))


def _set(document: Document, keys: tuple[str, ...], value: Any) -> None:
    if document.value is None:
        document.value = {}
    container, path = document.value, KeyPath()
    for position, key in enumerate(keys):
        is_last = position == len(keys) - 1
        index = _index(container, key, path)
        child = value if is_last else _entered(_child(container, index), (*path, index))
        path = (*path, index)
        if is_last or child is not _child(container, path[-1]):
            _note(document, path, keep_children=not is_last)
        if isinstance(container, list) and index == len(container):
            container.append(child)
        else:
            container[index] = child
        container = child


def _index(container: Any, key: str, path: KeyPath) -> Any:
    """`key` as `container` is indexed: a text for a mapping, a number for a list."""
    if isinstance(container, dict):
        return key
    if not isinstance(container, list):
        raise YamlError(f"cannot set a key inside `{dotted(path) or 'the file'}`, which holds a plain value", 1)
    if not key.isascii() or not key.isdigit() or len(key) > 6 or int(key) > len(container):
        raise YamlError(f"`{dotted(path)}` is a list of {len(container)}; `{printable(key)}` is no entry of it", 1)
    return int(key)


def _child(container: Any, index: Any) -> Any:
    if isinstance(container, dict):
        return container.get(index)
    return container[index] if index < len(container) else None


def _entered(child: Any, path: KeyPath) -> Any:
    """`child` as something that can hold a key: nothing becomes a mapping, a bare name becomes a Part."""
    if child is None:
        return {}
    if isinstance(child, str):
        return {"name": child}
    if not isinstance(child, dict | list):
        raise YamlError(f"cannot set a key inside `{dotted(path)}`, which holds a plain value", 1)
    return child


def _note(document: Document, path: KeyPath, keep_children: bool) -> None:
    """Let messages about `path` cite the command line, except for what the file says inside it."""
    previous = document.lines.get(path)
    for known in [known for known in document.lines if known[: len(path)] == path]:
        del document.lines[known]
    document.lines[path] = COMMAND_LINE
    if keep_children and previous is not None:
        document.lines[*path, "name"] = previous
