"""The base of every configuration model: strict, frozen, and with messages that a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gkd.core.yaml_lines import KeyPath, printable

MISTAKE = "mistake"
EXPECTED = "expected"

_PHRASES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "none_required": "null",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
    "string_too_short": "text of at least {min_length} characters",
    "string_pattern_mismatch": "text that matches `{pattern}`",
}


class ConfigModel(BaseModel):
    """A mapping of known keys. Unknown keys, wrong types, inf and nan are refused; an int serves as a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        """(key, message) for what is wrong between keys; `raw` is unchecked, so that all mistakes come together."""
        return ()

    @model_validator(mode="wrap")
    @classmethod
    def _collect(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        found: list[InitErrorDetails] = []
        model: Self | None = None
        try:
            model = handler(raw)
        except ValidationError as error:
            found = list(_translate(cls, raw, error.errors(include_url=False)))
        if isinstance(raw, Mapping):
            found += [mistake(text, (key,)) for key, text in cls.cross_checks(raw)]
        if found or model is None:
            raise ValidationError.from_exception_data(cls.__name__, found)
        return model


def mistake(text: str, path: KeyPath = ()) -> InitErrorDetails:
    """An entry of a ValidationError with the finished message `text` for the key at `path`."""
    return InitErrorDetails(type=PydanticCustomError(MISTAKE, "{text}", {"text": text}), loc=path, input=None)


def show(value: Any) -> str:
    """`value` as a message cites it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text `{printable(value)}`"
    if isinstance(value, int | float):
        return str(value)
    kinds = {type(None): "nothing", dict: "a mapping", list: "a list", tuple: "a list"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    return f"did you mean `{near[0]}`?" if near else "known: " + ", ".join(f"`{name}`" for name in names)


def _translate(cls: type[BaseModel], raw: Any, errors: list[ErrorDetails]) -> Iterator[InitErrorDetails]:
    """The errors of one model in our words. The branches of a union are told as one mistake: "expected a or b"."""
    phrases: dict[KeyPath, list[str]] = {}
    for error in errors:
        if error["type"] == MISTAKE:
            yield mistake(error["ctx"]["text"], error["loc"])
            continue
        path = _path_in(raw, error)
        if (phrase := _phrase(error)) is not None:
            phrases.setdefault(path, []).append(phrase)
        else:
            yield mistake(_sentence(cls, error), path)
    for path, wanted in phrases.items():
        yield mistake(f"expected {' or '.join(dict.fromkeys(wanted))}, got {show(_at(raw, path))}", path)


def _path_in(raw: Any, error: ErrorDetails) -> KeyPath:
    """The error's path without the marks that pydantic adds for the branches of a union."""
    path = KeyPath()
    for key in error["loc"]:
        if not isinstance(raw, Mapping | tuple | list):
            break
        path = (*path, key)
        raw = _at(raw, (key,))
    return path


def _at(raw: Any, path: KeyPath) -> Any:
    for key in path:
        if isinstance(raw, Mapping):
            raw = raw.get(key)
        else:
            raw = raw[key] if isinstance(raw, tuple | list) and isinstance(key, int) and key < len(raw) else None
    return raw


def _phrase(error: ErrorDetails) -> str | None:
    context = error.get("ctx", {})
    if error["type"] == EXPECTED:
        return str(context["phrase"])
    if error["type"] == "literal_error":
        return str(context["expected"]).replace("'", "`")
    template = _PHRASES.get(error["type"])
    return None if template is None else template.format(**{key: _brief(value) for key, value in context.items()})


def _brief(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _sentence(cls: type[BaseModel], error: ErrorDetails) -> str:
    key = error["loc"][-1] if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return f"unknown key; {did_you_mean(str(key), cls.model_fields)}"
    if error["type"] != "missing":
        return error["msg"]
    meaning = cls.model_fields[key].description if key in cls.model_fields else None
    return f"missing, and it has no default: {meaning}" if meaning else "missing, and it has no default"


def _text_to_path(value: Any) -> Any:
    if value == "" or not isinstance(value, str | Path):
        raise PydanticCustomError(EXPECTED, "{phrase}", {"phrase": "a path"})
    return Path(value)


FilePath = Annotated[Path, BeforeValidator(_text_to_path)]
"""A path, which YAML gives as text. Relative ones start at the working directory."""
