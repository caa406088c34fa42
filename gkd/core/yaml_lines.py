"""YAML read into plain values, with the line of every key: small, strict, and without the traps of YAML 1.1.

Quoted scalars are text, and so is every key; `yaml_scalars` says what the others are. Anchors, aliases, tags and
several documents are refused, and so are duplicate keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from gkd.core.errors import ConfigError
from gkd.core.yaml_scalars import plain_value

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 20
MAX_MESSAGE_LENGTH = 1000


@dataclass(frozen=True, order=True)
class Mistake:
    """One thing that is wrong with a configuration.

    `line` is 0 for what the command line gave; `path` is the dotted key, empty for the whole file.
    """

    line: int
    path: str
    text: str

    def __str__(self) -> str:
        source = f"line {self.line}" if self.line else "command line"
        return f"  {source}  {self.path + ': ' if self.path else ''}{self.text}"


class YamlError(ConfigError):
    """Text that is no acceptable YAML, with its line."""

    def __init__(self, text: str, line: int, path: KeyPath = ()) -> None:
        super().__init__(f"line {line}: {text}")
        self.mistake = Mistake(line, dotted(path), text)


@dataclass
class Document:
    """A parsed text: its value (dicts, lists and scalars), the line of each key path, and the mistakes found so far."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def line_of(self, path: KeyPath) -> int:
        """The line of `path`, or of the nearest part of it that the text holds; 0 stands for the command line."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1

    def add_mistake(self, path: KeyPath, text: str) -> None:
        """Note a mistake at `path`."""
        self.mistakes.append(Mistake(self.line_of(path), dotted(path), printable(text, MAX_MESSAGE_LENGTH)))


def dotted(path: KeyPath) -> str:
    """`path` as a message shows it; what a terminal could take for a command is escaped."""
    return printable(".".join(str(key) for key in path))


def printable(text: str, max_length: int = 80) -> str:
    """`text` on one line and without control characters, cut to `max_length`."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[: max_length + 1])
    return shown if len(shown) <= max_length else shown[: max_length - 1] + "…"


def read_yaml(text: str) -> Document:
    """Parse `text`.

    Raises:
        YamlError: it is not YAML, or it holds what is refused here (duplicate keys are noted as mistakes instead).
    """
    try:
        return _Composer(yaml.parse(text, Loader=yaml.SafeLoader)).compose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(f"not valid YAML: {error.problem}", mark.line + 1 if mark else 1) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"not valid YAML: character {chr(error.character)!r} is not allowed", line) from None


class _Composer:
    """From parser events to a Document. The nesting is bounded, so the recursion is."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self.events = events
        self.document = Document()

    def compose(self) -> Document:
        event = self.next_event(yaml.StreamStartEvent)
        event = next(self.events)
        if isinstance(event, yaml.DocumentStartEvent):
            self.document.value = self.compose_node(next(self.events), ())
            self.next_event(yaml.DocumentEndEvent)
            event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise YamlError("a second document (`---`); a config is one document", _line(event))
        return self.document

    def next_event(self, kind: type[yaml.Event]) -> yaml.Event:
        event = next(self.events)
        assert isinstance(event, kind)
        return event

    def compose_node(self, event: yaml.Event, path: KeyPath) -> Any:
        self.document.lines.setdefault(path, _line(event))
        _refuse_extras(event, path)
        if len(path) > MAX_DEPTH:
            raise YamlError(f"nested deeper than {MAX_DEPTH} levels", _line(event))
        if isinstance(event, yaml.MappingStartEvent):
            return self.compose_mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.compose_sequence(path)
        assert isinstance(event, yaml.ScalarEvent)
        return _scalar(event, path)

    def compose_sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.compose_node(event, (*path, len(items))))
        return items

    def compose_mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = _key(event, path)
            if key in values:
                self.skip_duplicate(key, path, _line(event))
                continue
            self.document.lines[*path, key] = _line(event)
            values[key] = self.compose_node(next(self.events), (*path, key))
        return values

    def skip_duplicate(self, key: str, path: KeyPath, line: int) -> None:
        first = self.document.lines[*path, key]
        text = f"duplicate key; it is already set on line {first}"
        self.document.mistakes.append(Mistake(line, dotted((*path, key)), text))
        _Composer(self.events).compose_node(next(self.events), (*path, key))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _refuse_extras(event: yaml.Event, path: KeyPath) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise YamlError("anchors (&) and aliases (*) are not read; write the value out", _line(event), path)
    if (tag := getattr(event, "tag", None)) is not None:
        raise YamlError(f"the tag `{printable(tag)}` is refused; write a plain value", _line(event), path)


def _key(event: yaml.Event, path: KeyPath) -> str:
    _refuse_extras(event, path)
    if not isinstance(event, yaml.ScalarEvent):
        raise YamlError("a key must be text, not a list or a mapping", _line(event), path)
    return _checked_text(event, path)


def _scalar(event: yaml.ScalarEvent, path: KeyPath) -> Any:
    text = _checked_text(event, path)
    if not event.implicit[0]:
        return text
    try:
        return plain_value(text)
    except ValueError as error:
        raise YamlError(str(error), _line(event), path) from None


def _checked_text(event: yaml.ScalarEvent, path: KeyPath) -> str:
    text: str = event.value
    # Escapes in quotes can spell what no file name or message can hold.
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise YamlError("text with a NUL or half a surrogate pair", _line(event), path)
    return text
