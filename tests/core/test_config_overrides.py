"""`key.path=VALUE` over a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.core.test_config import MINIMAL, message, only, parse


def test_values_are_yaml() -> None:
    config = parse(MINIMAL, "optim.lr=1e-4", "optim.clip=null", "title='12'", "sets=[a, b.bin]", "mean=[1,2,3]")
    assert config.optim.lr == 1e-4
    assert config.optim.clip is None
    assert config.title == "12"
    assert config.sets == (Path("a"), Path("b.bin"))
    assert config.mean == (1.0, 2.0, 3.0)


def test_keys_are_created_and_the_rest_stays() -> None:
    config = parse("title: a", "optim.lr=2", "optim.warmup_steps=3", "shape.margin=0.1", "shape.name=arc")
    assert (config.title, config.optim.lr, config.optim.warmup_steps) == ("a", 2.0, 3)
    assert config.shape.arguments()["margin"] == 0.1


def test_without_a_file_body() -> None:
    assert parse("", "optim.lr=2").optim.lr == 2.0


def test_an_equals_sign_in_the_value() -> None:
    assert parse(MINIMAL, "title=a=b").title == "a=b"


def test_the_last_of_two_counts() -> None:
    assert parse(MINIMAL, "optim.lr=2", "optim.lr=3").optim.lr == 3.0


def test_lists_by_index() -> None:
    text = MINIMAL + "sets: [a, b]\nterms: [{shape: arc}]\n"
    config = parse(text, "sets.0=x", "sets.2=z", "terms.0.weight=5", "terms.1.shape=grouped")
    assert config.sets == (Path("x"), Path("b"), Path("z"))
    assert [(term.shape.name, term.weight) for term in config.terms] == [("arc", 5.0), ("grouped", 1.0)]


def test_a_bare_name_becomes_a_part() -> None:
    config = parse(MINIMAL + "shape: arc\n", "shape.margin=0.25")
    assert config.shape.arguments() == {"margin": 0.25, "mode": "exact"}


def test_a_part_is_replaced() -> None:
    text = MINIMAL + "shape: {name: arc, margin: 0.25}\n"
    assert parse(text, "shape=grouped").shape.name == "grouped"
    assert parse(text, "shape={name: steps, at: [1]}").shape.arguments()["at"] == (1.0,)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=fast", "optim.lr: expected a number, got the text `fast`"),
        ("optim.lr=", "optim.lr: expected a number, got nothing"),
        ("optim.lrr=2", "optim.lrr: unknown key; did you mean `lr`?"),
        ("optm.lr=2", "optm: unknown key; did you mean `optim`?"),
        ("title", "`title` is not key.path=value"),
        ("=3", "`=3` is not key.path=value"),
        ("optim..lr=3", "`optim..lr=3` is not key.path=value"),
        ("optim.lr.x=3", "optim.lr.x: cannot set a key inside `optim.lr`, which holds a plain value"),
        ("sets.2=a", "sets.2: `sets` is a list of 1; `2` is no entry of it"),
        ("sets.-1=a", "sets.-1: `sets` is a list of 1; `-1` is no entry of it"),
        ("sets.x=a", "sets.x: `sets` is a list of 1; `x` is no entry of it"),
        ("sets.²=a", "sets.²: `sets` is a list of 1; `²` is no entry of it"),
        ("title=[1", "title: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("title=!!python/name:os.system", "title: the tag `tag:yaml.org,2002:python/name:os.system` is refused"),
        ("optim={lr: 1, lr: 2}", "optim: duplicate key; it is already set on line 1"),
        ("shape.name=ark", "shape.name: unknown name `ark`; did you mean `arc`?"),
        ("shape={name: arc, margin: -1}", "shape: margin must not be negative, got -1.0"),
        ("optim={warmup_steps: 2}", "optim.lr: missing, and it has no default: base learning rate"),
        ("terms=[{shape: ark}]", "terms.0.shape.name: unknown name `ark`; did you mean `arc`?"),
    ],
)
def test_mistakes_cite_the_command_line(override: str, expected: str) -> None:
    assert only(MINIMAL + "sets: [a]\n", override).startswith(f"  command line  {expected}")


def test_a_mistake_of_the_file_keeps_its_line() -> None:
    assert only("optim:\n  lr: 1\n  rl: 2\n", "optim.warmup_steps=3").startswith("  line 3  optim.rl")
    assert only(MINIMAL + "shape: ark\n", "shape.margin=1").startswith("  line 2  shape.name: unknown name")


def test_an_override_mends_a_mistake_of_the_file() -> None:
    assert parse("optim: {lr: fast}", "optim.lr=1").optim.lr == 1.0


def test_a_top_that_is_no_mapping() -> None:
    text = message("- 1", "a.b=2")
    assert "  command line  a.b: `` is a list of 1; `a` is no entry of it" in text
    assert "cannot set a key inside `the file`" in message("word", "a=2")
