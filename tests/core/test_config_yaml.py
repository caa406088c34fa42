"""The YAML reader: its rules, its lines, and hostile input."""

from __future__ import annotations

import contextlib
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gkd.core.yaml_lines import MAX_DEPTH, YamlError, dotted, printable, read_yaml
from gkd.core.yaml_scalars import plain_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-7", -7), ("+3", 3), ("0", 0), ("1.5", 1.5), ("1.", 1.0), (".5", 0.5), ("1e-4", 1e-4),
        ("1E5", 1e5), ("-1.5e+3", -1500.0), ("0.93", 0.93), ("-.inf", -math.inf), (".INF", math.inf),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("No", "No"), ("y", "y"),
        ("012", "012"), ("-012", "-012"), ("0o14", "0o14"), ("0x1F", "0x1F"), ("0b1", "0b1"), ("1_000", "1_000"),
        ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("01.5", "01.5"), ("inf", "inf"), ("nan", "nan"), ("1e", "1e"),
        ("'1'", "1"), ('"true"', "true"), ("'1e-4'", "1e-4"), ('""', ""), ("<<", "<<"), ("=", "="), ("|\n  1", "1\n"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    read = read_yaml(f"key: {text}\n").value["key"]
    assert read == value
    assert type(read) is type(value)


def test_nan() -> None:
    assert math.isnan(plain_value(".nan"))
    assert math.isnan(plain_value(".NaN"))


@given(st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none())
def test_what_pyyaml_writes_is_read(value: object) -> None:
    read = read_yaml(yaml.safe_dump({"key": value})).value["key"]
    assert read == value
    assert type(read) is type(value)


def test_keys_are_text() -> None:
    assert read_yaml("on: 1\n012: 2\nnull: 3\ntrue: 4").value == {"on": 1, "012": 2, "null": 3, "true": 4}


def test_lines() -> None:
    document = read_yaml("# comment\na: 1\nb:\n  c:\n  - x\n  - {y: 2,\n     z: 3}\n\nd: |\n  t\ne: 5\n")
    lines = {dotted(path): line for path, line in document.lines.items()}
    expected = {"a": 2, "b": 3, "b.c": 4, "b.c.0": 5, "b.c.1": 6, "b.c.1.y": 6, "b.c.1.z": 7, "d": 9, "e": 11}
    assert lines == {"": 2} | expected
    assert document.line_of(("b", "c", 1, "missing", "key")) == 6
    assert document.line_of(("missing",)) == 2


def test_duplicate_keys_are_noted_and_the_first_counts() -> None:
    document = read_yaml("a: 1\nb: {c: 1}\na: {d: [2], d: 3}\nb: {c: 2, c: 3}\nc: 4\n")
    assert document.value == {"a": 1, "b": {"c": 1}, "c": 4}
    assert [str(mistake) for mistake in document.mistakes] == [
        "  line 3  a: duplicate key; it is already set on line 1",
        "  line 4  b: duplicate key; it is already set on line 2",
    ]
    assert document.line_of(("b", "c")) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [1, 2\nc: 3", "line 3: not valid YAML: "),
        ("a: b: c", "line 1: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "line 2: not valid YAML: "),
        ("a: 'x", "line 1: not valid YAML: found unexpected end of stream"),
        ("a: 1\nb: \x07", "line 2: not valid YAML: character '\\x07' is not allowed"),
        ("a: 1\n---\nb: 2", "line 2: a second document (`---`); a config is one document"),
        ("a: &x 1", "line 1: anchors (&) and aliases (*) are not read; write the value out"),
        ("a: &x [1]\nb: *x", "line 1: anchors (&) and aliases (*) are not read; write the value out"),
        ("&x a: 1", "line 1: anchors (&) and aliases (*) are not read; write the value out"),
        ("a: 1\n<<: *x", "line 2: anchors (&) and aliases (*) are not read; write the value out"),
        ("a: !!python/object/apply:os.system ['true']", "line 1: the tag `tag:yaml.org,2002:python/object/apply:os"),
        ("a: !!python/name:os.system", "line 1: the tag `tag:yaml.org,2002:python/name:os.system` is refused"),
        ("a: !!binary aGk=", "line 1: the tag `tag:yaml.org,2002:binary` is refused; write a plain value"),
        ("a: !!int '3'", "line 1: the tag `tag:yaml.org,2002:int` is refused; write a plain value"),
        ("a: ! 3", "line 1: the tag `!` is refused; write a plain value"),
        ("a: 1\n? [b]\n: 2", "line 2: a key must be text, not a list or a mapping"),
        ("a: " + "9" * 5000, "line 1: a number of 5000 characters; at most 40 are read"),
        ("a: 9223372036854775808", "line 1: the integer 9223372036854775808 does not fit in 64 bits"),
        ('a: "\\0"', "line 1: text with a NUL or half a surrogate pair"),
        ('a: "\\ud800"', "line 1: text with a NUL or half a surrogate pair"),
        ('"\\0": 1', "line 1: text with a NUL or half a surrogate pair"),
        ("[" * 100_000, f"line 1: nested deeper than {MAX_DEPTH} levels"),
        ("{a: " * 100_000, f"line 1: nested deeper than {MAX_DEPTH} levels"),
        ("a: 1\na: " + "[" * 100, f"line 2: nested deeper than {MAX_DEPTH} levels"),
    ],
)  # fmt: skip
def test_refused(text: str, expected: str) -> None:
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert str(caught.value).startswith(expected)


def test_a_bomb_is_refused_at_its_first_anchor() -> None:
    levels = "".join(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    with pytest.raises(YamlError, match="line 1: anchors"):
        read_yaml("k0: &a0 [x]\n" + levels)


@given(st.text(max_size=60) | st.text("ab:-[]{},&*!|>'\"?%#\n\t 01", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(YamlError):
        assert all(line >= 1 for line in read_yaml(text).lines.values())


def test_printable() -> None:
    assert printable("a\x1b[31m\n\u202eb") == "a\\x1b[31m\\n\\u202eb"
    assert len(printable("x" * 1000)) == 80
    assert printable("ü" * 80) == "ü" * 80
