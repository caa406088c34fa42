"""Configs of any version as leaves, and the keys in which they differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from gkd.core.errors import GkdError
from gkd.runs import config_leaves
from gkd.runs.config_leaves import Difference, differences, read_leaves, show_value


def read(tmp_path: Path, text: str | bytes) -> dict[str, object]:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_leaves(path)


def test_leaves_have_dotted_keys(tmp_path: Path) -> None:
    text = "a: {b: 1, c: {d: 1e-4}}\nlist: [1, 2]\nterms: [{name: x}, {name: y}]\nnone: null\nempty: []\nmap: {}\n"
    assert read(tmp_path, text) == {
        "a.b": 1,
        "a.c.d": 1e-4,
        "list": [1, 2],
        "terms.0.name": "x",
        "terms.1.name": "y",
        "none": None,
        "empty": [],
        "map": {},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "is not UTF-8 text"),
        (b"a: [", "not valid YAML"),
        (b"a: &x 1\nb: *x\n", "anchors"),
        (b"a: !!python/object:os.system x\n", "tag"),
        (b"- 1\n", "is not a mapping of settings"),
        (b"", "is not a mapping of settings"),
        (b"a: " + b"[" * 100 + b"]" * 100, "nested deeper"),
        (b"x" * (2**20 + 1), "more than the 1,048,576 bytes allowed"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(GkdError, match=message):
        read(tmp_path, text)


def test_number_of_leaves_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_leaves, "MAX_LEAVES", 10)
    assert len(read(tmp_path, "".join(f"k{place}: 1\n" for place in range(50)))) == 10


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1e-4, "0.0001"),
        (4.0, "4.0"),
        ([112, None], "[112, null]"),
        ("a\nb\x1b", "a\\nb\\x1b"),
    ],
)
def test_values_are_shown_as_yaml_has_them(value: object, text: str) -> None:
    assert show_value(value) == text


def test_long_values_are_cut() -> None:
    assert len(show_value("x" * 10_000)) == config_leaves.MAX_TEXT_LENGTH
    assert len(show_value(["x" * 10_000] * 100)) == config_leaves.MAX_TEXT_LENGTH


def test_only_keys_that_differ_are_told() -> None:
    left = {"run.folder": "x", "optim.lr": 0.1, "train.epochs": 2}
    right = {"run.folder": "y", "optim.lr": 0.2, "train.epochs": 2}
    assert differences([left, right]) == [Difference("optim.lr", ("0.1", "0.2"), False)]
    assert differences([left, dict(left)]) == []


def test_one_and_one_point_zero_differ_only_as_text() -> None:
    assert [one.values for one in differences([{"a": 1}, {"a": 1.0}, {"a": True}])] == [("1", "1.0", "true")]


def test_keys_of_some_versions_come_last_unless_they_differ() -> None:
    configs = [{"new": 1, "lr": 1, "both": 1}, {"lr": 2}, {"lr": 2, "both": 2}]
    assert differences(configs) == [
        Difference("lr", ("1", "2", "2"), False),
        Difference("both", ("1", "(absent)", "2"), False),
        Difference("new", ("1", "(absent)", "(absent)"), True),
    ]


def test_section_that_is_off_is_told_by_its_keys() -> None:
    configs = [{"teacher": None, "distill": []}, {"teacher.run": "x", "distill.0.loss.name": "gkd"}]
    assert [(one.key, one.values) for one in differences(configs)] == [
        ("teacher.run", ("-", "x")),
        ("distill.0.loss.name", ("-", "gkd")),
    ]
