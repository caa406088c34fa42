"""Parts: swappable pieces that YAML names, `margin: {name: arcface, margin: 0.5}`.

The schema of a Part is generated from the keyword-only signature of the class (or function) that its name stands for,
so a default is written once and a setting is described once, in the docstring of that class.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, create_model
from pydantic_core import CoreSchema, core_schema

from gkd.core.config_model import ConfigModel, FilePath, did_you_mean, mistake, show
from gkd.core.docstrings import argument_descriptions, summary
from gkd.core.errors import ConfigError
from gkd.core.yaml_lines import printable

Table = Mapping[str, Callable[..., Any]]


class Part(ConfigModel):
    """A name and its arguments. Each entry of a table has its own subclass, with a field for each argument."""

    name: str

    def arguments(self) -> dict[str, Any]:
        """The arguments as plain values; a nested Part stays a Part."""
        return {field: getattr(self, field) for field in type(self).model_fields if field != "name"}


def build_part(part: Part, table: Table, *positional: Any, tables: Mapping[str, Table] | None = None) -> Any:
    """Call what the Part names with its arguments, nested Parts built first.

    Args:
        table: YAML name to class or function.
        positional: what the run supplies and no config holds, such as a head's `embedding_dim` and `num_classes`.
        tables: for each argument that is a Part itself, the table it comes from.

    Raises:
        ConfigError: the class refuses a value.
    """
    arguments = part.arguments()
    for key, value in arguments.items():
        if isinstance(value, Part):
            arguments[key] = build_part(value, (tables or {})[key])
    return table[part.name](*positional, **arguments)


class PartOf:
    """Marks a field as a Part of `table`: `margin: Annotated[Part, PartOf(MARGINS, "margin")]`.

    Args:
        table: YAML name to class or function.
        kind: what the entries are, for the JSON Schema.
        nested: for each class that a parameter may be annotated with, the table its Parts come from.
        include: parameters that are config although they are not keyword-only, such as a data set's `path`.
        open_prefixes: starts of names (`timm:`) that are not listed one by one, each with the factory that the
            arguments come from and the parameter of it that the rest of the name stands for. `build_part` does not
            know them: whoever builds such a Part splits its name.
        is_checked: construct each Part while the config is read, so that values which the class refuses are reported
            with their line. For cheap classes.
        check_with: what stands for the positional parameters then, such as a head's sizes.
    """

    def __init__(
        self,
        table: Table,
        kind: str,
        *,
        nested: Mapping[type, Table] | None = None,
        include: Iterable[str] = (),
        open_prefixes: Mapping[str, tuple[Callable[..., Any], str]] | None = None,
        is_checked: bool = False,
        check_with: Sequence[Any] = (),
    ) -> None:
        self.table = table
        self.kind = kind
        self.nested = {cls: PartOf(entries, cls.__name__.lower()) for cls, entries in (nested or {}).items()}
        self.include = frozenset(include)
        self.is_checked = is_checked
        self.check_with = tuple(check_with)
        self.models = {name: self._model(name, factory, Literal[name]) for name, factory in table.items()}
        self.prefixes = {
            prefix: self._model(prefix, factory, Annotated[str, Field(pattern=f"^{re.escape(prefix)}.")], excluded)
            for prefix, (factory, excluded) in (open_prefixes or {}).items()
        }

    def _model(self, name: str, factory: Callable[..., Any], name_type: Any, excluded: str = "") -> type[Part]:
        described = argument_descriptions(factory)
        fields: dict[str, Any] = {"name": (name_type, ...)}
        for parameter in inspect.signature(factory, eval_str=True).parameters.values():
            is_config = parameter.kind is parameter.KEYWORD_ONLY or parameter.name in self.include
            if not is_config or parameter.name == excluded:
                continue
            if parameter.name == "name":
                raise TypeError(f"the {self.kind} {name} has a parameter `name`, which is the key that chooses it")
            default = ... if parameter.default is parameter.empty else self._plain_default(parameter.default)
            field = Field(default, description=described.get(parameter.name))
            fields[parameter.name] = (self._field_type(parameter.annotation), field)
        title = re.sub(r"\W+", "_", f"{self.kind}_{name}").strip("_")
        model: type[Part] = create_model(title, __base__=Part, __doc__=summary(factory), **fields)
        return model

    def _field_type(self, annotation: Any) -> Any:
        """The parameter's annotation with paths read from text and nested classes replaced by their Parts."""
        if annotation is Path:
            return FilePath
        if isinstance(annotation, type) and annotation in self.nested:
            return Annotated[Part, self.nested[annotation]]
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin in (Union, types.UnionType):
            # `str | Path` is one thing in YAML: a path.
            arguments = tuple(argument for argument in arguments if argument is not str or Path not in arguments)
            return Union[tuple(self._field_type(argument) for argument in arguments)]  # noqa: UP007
        if origin is tuple:
            return tuple[tuple(self._field_type(argument) for argument in arguments)]  # type: ignore[misc]
        if annotation is inspect.Parameter.empty:
            raise TypeError(f"a {self.kind} has a parameter without a type annotation")
        return annotation

    def _plain_default(self, default: Any) -> Any:
        """A default as YAML would give it: an object of a nested class becomes the Part that builds its equal.

        Such a class keeps each setting as an attribute of the same name.
        """
        for part_of in self.nested.values():
            for name, cls in part_of.table.items():
                if type(default) is cls:
                    settings = [key for key in part_of.models[name].model_fields if key != "name"]
                    return part_of.validate({"name": name} | {key: getattr(default, key) for key in settings})
        return default

    def validate(self, value: Any) -> Part:
        """The Part that a plain value (a name, or a mapping with `name`) describes."""
        if isinstance(value, Part):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict):
            raise _refusal(f"expected a name or a mapping with `name`, got {show(value)}")
        if "name" not in value:
            raise _refusal(f"missing; a {self.kind} is chosen by name: {', '.join(self.known_names())}", "name")
        part = self._find(value["name"]).model_validate(value)
        if self.is_checked:
            self._construct(part)
        return part

    def _construct(self, part: Part) -> None:
        nested = {key: value for key, value in part.arguments().items() if isinstance(value, Part)}
        tables = {key: self._table_of(value) for key, value in nested.items()}
        try:
            build_part(part, self.table, *self.check_with, tables=tables)
        except ConfigError as error:
            raise _refusal(str(error)) from None

    def _table_of(self, part: Part) -> Table:
        return next(inner.table for inner in self.nested.values() if type(part) in inner.models.values())

    def _find(self, name: Any) -> type[Part]:
        if not isinstance(name, str):
            raise _refusal(f"expected text, got {show(name)}", "name")
        if name in self.models:
            return self.models[name]
        for prefix, model in self.prefixes.items():
            if name.startswith(prefix):
                return model
        raise _refusal(f"unknown name `{printable(name)}`; {did_you_mean(name, self.known_names())}", "name")

    def known_names(self) -> list[str]:
        """The names of the table, then `prefix<name>` for each open prefix."""
        return [*self.models, *(f"{prefix}<name>" for prefix in self.prefixes)]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        models = [*self.models.values(), *self.prefixes.values()]
        union = core_schema.union_schema([handler.generate_schema(model) for model in models])
        return core_schema.no_info_wrap_validator_function(lambda value, _: self.validate(value), union)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        bare = [name for name, model in self.models.items() if not _required(model)]
        choices: list[dict[str, Any]] = [{"enum": bare}] if bare else []
        choices += [{"type": "string", "pattern": f"^{re.escape(prefix)}."} for prefix in self.prefixes]
        return {"anyOf": choices + list(described.get("anyOf", [described]))}


def _refusal(text: str, *path: str) -> ValidationError:
    return ValidationError.from_exception_data("part", [mistake(text, path)])


def _required(model: type[Part]) -> bool:
    return any(field.is_required() for key, field in model.model_fields.items() if key != "name")
