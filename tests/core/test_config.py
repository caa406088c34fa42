"""Loading, messages, dumping and the JSON Schema, on a toy configuration."""

from __future__ import annotations

import math
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gkd.core.config import MAX_CONFIG_BYTES, dump_yaml, json_schema, load_config, parse_config, to_plain
from gkd.core.errors import ConfigError
from tests.core.config_toy import Fixed, Optim, Toy

MINIMAL = "optim: {lr: 0.1}\n"


def parse(text: str, *overrides: str) -> Toy:
    return parse_config(text, Toy, overrides, where="x.yaml")


def message(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, *overrides)
    return str(caught.value)


def only(text: str, *overrides: str) -> str:
    """The one line of mistakes."""
    first, *lines = message(text, *overrides).split("\n")
    assert first == "invalid config x.yaml:"
    assert len(lines) == 1, lines
    return lines[0]


def test_defaults() -> None:
    config = parse(MINIMAL)
    assert (config.optim.lr, config.optim.warmup_steps, config.title) == (0.1, 0, "toy")
    assert config.shape.name == "arc"
    assert config.shape.arguments() == {"margin": 0.5, "mode": "exact"}


def test_values_are_converted() -> None:
    config = parse("optim: {lr: 1e-4, clip: 2}\nfolder: runs/a\nmean: [1, 2.5, -3]\nsets: [a.bin, b.bin]\n")
    assert config.optim.lr == 1e-4
    assert isinstance(config.optim.clip, float)
    assert config.folder == Path("runs/a")
    assert config.mean == (1.0, 2.5, -3.0)
    assert config.sets == (Path("a.bin"), Path("b.bin"))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(MINIMAL).title = "other"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("optim: {lr: '0.1'}", "optim.lr: expected a number, got the text `0.1`"),
        ("optim: {lr: 1_000}", "optim.lr: expected a number, got the text `1_000`"),
        ("optim: {lr: true}", "optim.lr: expected a number, got true"),
        ("optim: {lr: -1}", "optim.lr: expected a number above 0, got -1"),
        ("optim: {lr: .inf}", "optim.lr: expected a finite number, got inf"),
        ("optim: {lr: .nan}", "optim.lr: expected a finite number, got nan"),
        ("optim: {lr: 1e999}", "optim.lr: expected a finite number, got inf"),
        ("optim: {lr: }", "optim.lr: expected a number, got nothing"),
        ("optim: {lr: [1]}", "optim.lr: expected a number, got a list"),
        ("optim: {lr: 1, warmup_steps: 2.5}", "optim.warmup_steps: expected an integer, got 2.5"),
        ("optim: {lr: 1, warmup_steps: 2.0}", "optim.warmup_steps: expected an integer, got 2.0"),
        ("optim: {lr: 1, warmup_steps: '2'}", "optim.warmup_steps: expected an integer, got the text `2`"),
        ("optim: {lr: 1, warmup_steps: 012}", "optim.warmup_steps: expected an integer, got the text `012`"),
        ("optim: {lr: 1, warmup_steps: true}", "optim.warmup_steps: expected an integer, got true"),
        ("optim: {lr: 1, warmup_steps: 1:30}", "optim.warmup_steps: expected an integer, got the text `1:30`"),
        ("optim: {lr: 1, warmup_steps: -2}", "optim.warmup_steps: expected a number of at least 0, got -2"),
        ("optim: 3", "optim: expected a mapping, got 3"),
        ("optim: {}", "optim.lr: missing, and it has no default: base learning rate"),
        ("optim: {lr: 1, warmup_step: 3}", "optim.warmup_step: unknown key; did you mean `warmup_steps`?"),
        ("optim: {lr: 1, zzz: 3}", "optim.zzz: unknown key; known: `ceiling`, `clip`, `lr`, `warmup_steps`"),
    ],
)
def test_one_mistake_in_a_section(line: str, expected: str) -> None:
    assert only(line) == f"  line 1  {expected}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("is_fast: off", "is_fast: expected true or false, got the text `off`"),
        ("is_fast: yes", "is_fast: expected true or false, got the text `yes`"),
        ("is_fast: 1", "is_fast: expected true or false, got 1"),
        ("title: 12", "title: expected text, got 12"),
        ("title: [a]", "title: expected text, got a list"),
        ("mode: ato", "mode: expected `auto` or `never`, got the text `ato`"),
        ("limit: 2.5", "limit: expected an integer or `none`, got 2.5"),
        ("folder: ''", "folder: expected a path, got the text ``"),
        ("folder: 3", "folder: expected a path, got 3"),
        ("mean: [1, 2]", "mean.2: missing, and it has no default"),
        ("mean: [1, 2, 3, 4]", "mean: expected at most 3 entries, got a list"),
        ("mean: [1, x, 3]", "mean.1: expected a number, got the text `x`"),
        ("mean: 3", "mean: expected a list, got 3"),
        ("sets: a.bin", "sets: expected a list, got the text `a.bin`"),
        ("terms: [{shape: arc, wieght: 2}]", "terms.0.wieght: unknown key; did you mean `weight`?"),
        ("terms: [{shape: {name: ark}}]", "terms.0.shape.name: unknown name `ark`; did you mean `arc`?"),
        ("is_fast: true\nterms: [{shape: arc}]", "terms: cannot be fast; set is_fast to false"),
        ('"a\\e[31m": 1', "a\\x1b[31m: unknown key; known: `files`"),
    ],
)
def test_one_mistake_at_the_top(line: str, expected: str) -> None:
    line_number = 1 + line.count("\n")
    assert only(line + "\n" + MINIMAL).startswith(f"  line {line_number}  {expected}")


def test_all_mistakes_come_together_and_in_order() -> None:
    text = """\
shape:
  name: arcc
optim:
  lr: fast
  lr: 2

  warmup_steps: 2.5
is_fast: true
terms:
  - shape: {name: arc, margin: -1}
  - {shape: steps}
title: [
  a]
"""
    assert message(text, "optim.clap=2", "mode=always") == "\n".join(
        [
            "invalid config x.yaml:",
            "  line 2  shape.name: unknown name `arcc`; did you mean `arc`?",
            "  line 4  optim.lr: expected a number, got the text `fast`",
            "  line 5  optim.lr: duplicate key; it is already set on line 4",
            "  line 7  optim.warmup_steps: expected an integer, got 2.5",
            "  line 9  terms: cannot be fast; set is_fast to false",
            "  line 10  terms.0.shape: margin must not be negative, got -1.0",
            "  line 11  terms.1.shape.at: missing, and it has no default: where the steps are.",
            "  line 12  title: expected text, got a list",
            "  command line  mode: expected `auto` or `never`, got the text `always`",
            "  command line  optim.clap: unknown key; did you mean `clip`?",
        ]
    )


def test_many_mistakes_are_cut() -> None:
    lines = message(MINIMAL + "".join(f"key{index}: 1\n" for index in range(200))).split("\n")
    assert len(lines) == 52
    assert lines[-1] == "  and 150 more"


@pytest.mark.parametrize("text", ["", "# nothing\n", "null"])
def test_an_empty_file_misses_its_keys(text: str) -> None:
    assert only(text) == "  line 1  optim: missing, and it has no default"


@pytest.mark.parametrize(("text", "got"), [("- a", "a list"), ("word", "the text `word`"), ("3", "3")])
def test_the_top_must_be_a_mapping(text: str, got: str) -> None:
    assert only(text) == f"  line 1  expected a mapping of keys at the top, got {got}"


def test_inf_where_it_is_declared() -> None:
    assert math.isinf(parse("optim: {lr: 1, ceiling: .inf}").optim.ceiling)
    assert math.isnan(parse("optim: {lr: 1, ceiling: .nan}").optim.ceiling)


class TestFiles:
    def test_load(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode() + "title: Gesicht ü\r\n".encode())
        assert load_config(path, Toy, ["optim.lr=3"]).optim.lr == 3.0
        assert load_config(str(path), Toy).title == "Gesicht ü"

    def test_the_message_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_text("optim: 1")
        with pytest.raises(ConfigError) as caught:
            load_config(path, Toy)
        assert str(caught.value).startswith(f"invalid config {path}:\n  line 1  optim: ")

    def test_missing_and_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"cannot read config .*no.yaml: No such file"):
            load_config(tmp_path / "no.yaml", Toy)
        with pytest.raises(ConfigError, match=r"cannot read config .*: Is a directory"):
            load_config(tmp_path, Toy)

    def test_too_large(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
        with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
            load_config(path, Toy)

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(b"optim: {lr: 1}\ntitle: \xff\n")
        with pytest.raises(ConfigError, match="line 2 is not UTF-8 text"):
            load_config(path, Toy)


TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
TRAPS = st.sampled_from(
    ["1e-4", "off", "012", "true", "null", "~", "", "1_0", "2024-01-01", "<<", "=", "a: b", "0x1", ".5"]
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
PATHS = (TEXTS | TRAPS).filter(bool)
SHAPES = st.one_of(
    st.just("arc"),
    st.builds(lambda margin: {"name": "arc", "margin": margin}, st.floats(0, 1e300)),
    st.builds(
        lambda at, limit: {"name": "steps", "at": tuple(at), "limit": limit}, st.lists(FLOATS), st.none() | FLOATS
    ),
    st.builds(lambda size: {"name": "grouped", "group": {"name": "fixed", "size": size}}, st.integers(1, 2**62)),
)


@pytest.mark.parametrize(
    "title", ["\x85", "a\u2028b", "a\nb\n", " a ", "\t", "\ufeff", "\x1b", "x" * 500 + " y", "ü", "\U0001f600"]
)
def test_invisible_text_survives_a_dump(title: str) -> None:
    config = Toy(optim=Optim(lr=1.0), title=title)
    assert parse(dump_yaml(config)) == config


@given(
    st.fixed_dictionaries(
        {"optim": st.fixed_dictionaries({"lr": st.floats(1e-320, 1e308), "ceiling": FLOATS | st.just(math.inf)})},
        optional={
            "title": TEXTS | TRAPS,
            "folder": st.none() | PATHS,
            "limit": st.just("none") | st.integers(-(2**63), 2**63 - 1),
            "sets": st.lists(PATHS, max_size=3).map(tuple),
            "mean": st.tuples(FLOATS, FLOATS, FLOATS),
            "shape": SHAPES,
            "files": st.builds(lambda path: {"name": "files", "path": path}, PATHS) | st.just("lib:net"),
            "terms": st.lists(st.builds(lambda shape: {"shape": shape}, SHAPES), max_size=2).map(tuple),
        },
    )
)
def test_a_dumped_config_reads_back_equal(value: dict) -> None:
    config = Toy.model_validate(value)
    text = dump_yaml(config)
    assert parse(text) == config
    assert dump_yaml(parse(text)) == text


def test_every_default_is_written_out() -> None:
    plain = yaml.safe_load(dump_yaml(parse(MINIMAL + "terms: [{shape: grouped}]\nfiles: {name: files, path: x}")))
    assert plain["optim"] == {"lr": 0.1, "warmup_steps": 0, "ceiling": 1.0, "clip": 5.0}
    assert plain["shape"] == {"name": "arc", "margin": 0.5, "mode": "exact"}
    group = {"name": "fixed", "size": 7}
    assert plain["terms"] == [{"shape": {"name": "grouped", "weight": 1.0, "group": group}, "weight": 1.0}]
    assert plain["files"] == {"name": "files", "path": "x", "cache": None}
    assert list(plain)[:3] == ["optim", "title", "is_fast"]


def test_to_plain_of_other_values() -> None:
    assert to_plain({"a": (Path("b"), 1)}) == {"a": ["b", 1]}
    assert to_plain(Optim(lr=1.0))["lr"] == 1.0


class TestJsonSchema:
    validator = jsonschema.Draft202012Validator(json_schema(Toy))

    def test_it_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(self.validator.schema)
        assert self.validator.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"

    @pytest.mark.parametrize(
        "text",
        [
            MINIMAL,
            MINIMAL + "shape: arc",
            MINIMAL + "shape: {name: steps, at: [1, 2.5]}",
            MINIMAL + "shape: {name: grouped, group: {name: fixed}}",
            MINIMAL + "files: lib:net\nterms: [{shape: grouped, weight: 2}]",
            MINIMAL + "files: {name: 'lib:net', width: 3}",
            MINIMAL + "mean: [1, 2, 3]\nlimit: 3\nfolder: a\nmode: never",
        ],
    )
    def test_accepts_what_loads(self, text: str) -> None:
        parse(text)
        self.validator.validate(yaml.safe_load(text))

    def test_accepts_a_dump(self) -> None:
        self.validator.validate(yaml.safe_load(dump_yaml(parse(MINIMAL))))

    @pytest.mark.parametrize(
        "text",
        [
            "{}",
            "optim: {lr: 0}",
            "optim: {lr: fast}",
            MINIMAL + "colour: red",
            MINIMAL + "shape: ark",
            MINIMAL + "shape: steps",
            MINIMAL + "shape: {name: arc, margins: 1}",
            MINIMAL + "shape: {name: grouped, group: {name: arc}}",
            MINIMAL + "files: {name: 'lib:', width: 3}",
            MINIMAL + "mean: [1, 2]",
            MINIMAL + "mode: always",
        ],
    )
    def test_refuses_what_does_not_load(self, text: str) -> None:
        message(text)
        assert not self.validator.is_valid(yaml.safe_load(text))

    def test_describes_arguments(self) -> None:
        definitions = self.validator.schema["$defs"]
        assert definitions["group_fixed"]["properties"]["size"]["description"] == "number of entries, at least 1."
        assert definitions["group_fixed"]["properties"]["size"]["default"] == Fixed().size
        assert definitions["shape_arc"]["description"] == "An angle."
