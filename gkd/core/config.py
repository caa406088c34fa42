"""Configuration: a YAML file and command-line overrides into a checked model, and a model back into YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gkd.core.config_model import ConfigModel, FilePath, show
from gkd.core.errors import ConfigError
from gkd.core.overrides import apply_overrides
from gkd.core.parts import Part, PartOf, build_part
from gkd.core.yaml_lines import Document, Mistake, YamlError, read_yaml
from gkd.core.yaml_scalars import FLOAT_PATTERN

__all__ = [
    "ConfigModel",
    "FilePath",
    "Part",
    "PartOf",
    "build_part",
    "dump_yaml",
    "json_schema",
    "load_config",
    "parse_config",
    "to_plain",
]

MAX_CONFIG_BYTES = 2**20
MAX_MISTAKES_SHOWN = 50

Model = TypeVar("Model", bound=ConfigModel)


def load_config(path: str | Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file, lay `key.path=VALUE` overrides over it and check the result.

    Raises:
        ConfigError: the file cannot be read, or any key is wrong; all mistakes are listed, each with its line.
    """
    return parse_config(_read(Path(path)), model, overrides, where=str(path))


def parse_config(text: str, model: type[Model], overrides: Sequence[str] = (), *, where: str) -> Model:
    """`load_config` for YAML that is already read; `where` names it in messages."""
    try:
        document = read_yaml(text)
    except YamlError as error:
        raise _invalid(where, [error.mistake]) from None
    apply_overrides(document, overrides)
    checked = _check(document, model)
    if document.mistakes or checked is None:
        raise _invalid(where, document.mistakes)
    return checked


def to_plain(value: Any) -> Any:
    """A config as dicts, lists and scalars, every default filled in."""
    if isinstance(value, BaseModel):
        return {key: to_plain(getattr(value, key)) for key in type(value).model_fields}
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(config: BaseModel) -> str:
    """The config as YAML with every default filled in; `load_config` reads it back to an equal one."""
    return yaml.dump(to_plain(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the files that `model` reads, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema()


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from None
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"cannot read config {path}: it is larger than {MAX_CONFIG_BYTES} bytes; is it a config?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"cannot read config {path}: line {line} is not UTF-8 text") from None


def _check(document: Document, model: type[Model]) -> Model | None:
    """The model, or None and the mistakes noted in `document`."""
    value = {} if document.value is None else _lists_to_tuples(document.value)
    if not isinstance(value, dict):
        document.add_mistake((), f"expected a mapping of keys at the top, got {show(value)}")
        return None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        for entry in error.errors(include_url=False, include_input=False):
            document.add_mistake(entry["loc"], entry["msg"])
        return None


def _lists_to_tuples(value: Any) -> Any:
    """Frozen models hold tuples, and strict ones take nothing else for them."""
    if isinstance(value, dict):
        return {key: _lists_to_tuples(entry) for key, entry in value.items()}
    return tuple(_lists_to_tuples(entry) for entry in value) if isinstance(value, list) else value


def _invalid(where: str, mistakes: list[Mistake]) -> ConfigError:
    # The command line comes last, as it does where it is applied.
    ordered = sorted(set(mistakes), key=lambda mistake: (mistake.line == 0, mistake))
    lines = [str(mistake) for mistake in ordered[:MAX_MISTAKES_SHOWN]]
    if len(ordered) > MAX_MISTAKES_SHOWN:
        lines.append(f"  and {len(ordered) - MAX_MISTAKES_SHOWN} more")
    return ConfigError("\n".join([f"invalid config {where}:", *lines]))


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or our reader would take for something other than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Line ends and other invisible characters survive only as escapes in double quotes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT_PATTERN, list("-+.0123456789"))
