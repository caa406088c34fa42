"""Parts: schemas from signatures, checks, nesting and building."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from gkd.core.config import ConfigModel, Part, PartOf, build_part, parse_config
from gkd.core.errors import ConfigError
from tests.core.config_toy import FILES, GROUPS, SHAPES, Arc, Files, Fixed, Grouped, Steps
from tests.core.test_config import MINIMAL, only, parse


def shape(text: str) -> Part:
    return parse(f"{MINIMAL}shape: {text}\n").shape


def test_bare_name_and_mapping_are_equal() -> None:
    assert shape("arc") == shape("{name: arc}") == shape("{name: arc, margin: 0.5}")
    assert shape("arc") != shape("{name: arc, margin: 0.4}")


def test_arguments_are_plain_and_nested_parts_stay_parts() -> None:
    assert shape("{name: steps, at: [1, 2]}").arguments() == {"at": (1.0, 2.0), "limit": None}
    group = shape("grouped").arguments()["group"]
    assert isinstance(group, Part)
    assert (group.name, group.arguments()) == ("fixed", {"size": 7})


def test_build() -> None:
    arc = build_part(shape("{name: arc, margin: 1}"), SHAPES)
    assert isinstance(arc, Arc)
    assert arc.margin == 1.0
    assert build_part(shape("{name: steps, at: [3]}"), SHAPES).at == (3.0,)


def test_build_nested() -> None:
    grouped = build_part(shape("{name: grouped, group: {name: fixed, size: 2}}"), SHAPES, tables={"group": GROUPS})
    assert isinstance(grouped, Grouped)
    assert isinstance(grouped.group, Fixed)
    assert grouped.group.size == 2
    assert build_part(shape("grouped"), SHAPES, tables={"group": GROUPS}).group.size == 7


def test_build_with_positional_arguments() -> None:
    part = parse(MINIMAL + "files: {name: files, path: a/b, cache: c}\n").files
    assert part is not None
    assert part.arguments() == {"path": Path("a/b"), "cache": Path("c")}
    files = build_part(part, FILES)
    assert isinstance(files, Files)
    assert (files.path, files.count, files.cache) == (Path("a/b"), 1, Path("c"))


def test_an_open_prefix() -> None:
    part = parse(MINIMAL + "files: {name: 'lib:net', width: 3}\n").files
    assert part is not None
    assert (part.name, part.arguments()) == ("lib:net", {"width": 3})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shape: arcc", "shape.name: unknown name `arcc`; did you mean `arc`?"),
        ("shape: zzz", "shape.name: unknown name `zzz`; known: `arc`, `grouped`, `steps`"),
        ('shape: "\\e[31m"', "shape.name: unknown name `\\x1b[31m`; known: `arc`, `grouped`, `steps`"),
        ("shape: 3", "shape: expected a name or a mapping with `name`, got 3"),
        ("shape: ", "shape: expected a name or a mapping with `name`, got nothing"),
        ("shape: [arc]", "shape: expected a name or a mapping with `name`, got a list"),
        ("shape: {margin: 1}", "shape.name: missing; a shape is chosen by name: arc, steps, grouped"),
        ("shape: {name: 3}", "shape.name: expected text, got 3"),
        ("shape: {name: arc, margn: 1}", "shape.margn: unknown key; did you mean `margin`?"),
        ("shape: {name: arc, margin: big}", "shape.margin: expected a number, got the text `big`"),
        ("shape: {name: arc, margin: .inf}", "shape.margin: expected a finite number, got inf"),
        ("shape: {name: arc, mode: slow}", "shape.mode: expected `exact` or `fast`, got the text `slow`"),
        ("shape: {name: arc, margin: -1}", "shape: margin must not be negative, got -1.0"),
        ("shape: steps", "shape.at: missing, and it has no default: where the steps are."),
        ("shape: {name: steps, at: [1, x]}", "shape.at.1: expected a number, got the text `x`"),
        ("shape: {name: steps, at: [1], limit: x}", "shape.limit: expected a number, got the text `x`"),
        ("shape: {name: grouped, group: fixd}", "shape.group.name: unknown name `fixd`; did you mean `fixed`?"),
        ("shape: {name: grouped, group: {name: fixed, size: 1.5}}", "shape.group.size: expected an integer, got 1.5"),
        ("shape: {name: grouped, group: {name: fixed, size: 0}}", "shape: size must be at least 1, got 0"),
        ("files: {name: files}", "files.path: missing, and it has no default"),
        ("files: {name: files, path: a, count: 2}", "files.count: unknown key; known: `cache`, `name`, `path`"),
        ("files: {name: 'lib:net', model: a}", "files.model: unknown key; known: `name`, `width`"),
        ("files: 'lib:'", "files.name: expected text that matches `^lib:.`, got the text `lib:`"),
        ("files: other", "files.name: unknown name `other`; known: `files`, `lib:<name>`"),
    ],
)
def test_mistakes(text: str, expected: str) -> None:
    assert only(MINIMAL + text) == f"  line 2  {expected}"


def test_a_nested_range_is_cited_once() -> None:
    assert only(MINIMAL + "terms:\n- shape:\n    name: arc\n    margin: -2") == (
        "  line 3  terms.0.shape: margin must not be negative, got -2.0"
    )


def test_building_refuses_what_the_config_did_not_check() -> None:
    class Root(ConfigModel):
        shape: Annotated[Part, PartOf({"arc": Arc}, "shape")] = Field(default="arc", validate_default=True)

    config = parse_config("shape: {name: arc, margin: -1}", Root, where="x")
    with pytest.raises(ConfigError, match="must not be negative"):
        build_part(config.shape, {"arc": Arc})


def test_functions_are_parts_too() -> None:
    def make(*, count: int = 2) -> int:
        return count

    part = PartOf({"make": make}, "maker").validate({"name": "make", "count": 5})
    assert build_part(part, {"make": make}) == 5


def test_a_part_without_its_signature_in_order_is_a_programming_error() -> None:
    def unannotated(*, size=3) -> None: ...  # type: ignore[no-untyped-def]

    def named(*, name: str) -> None: ...

    with pytest.raises(TypeError, match="a toy has a parameter without a type annotation"):
        PartOf({"a": unannotated}, "toy")
    with pytest.raises(TypeError, match="the toy b has a parameter `name`"):
        PartOf({"b": named}, "toy")


def test_a_default_in_a_class_is_the_only_place_of_it() -> None:
    class Later:
        def __init__(self, *, size: int = 11) -> None:
            self.size = size

    part: Any = PartOf({"later": Later}, "later").validate("later")
    assert part.size == 11
    assert Steps(at=()).limit is None
