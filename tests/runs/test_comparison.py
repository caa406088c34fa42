"""Runs side by side, in a terminal and in Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gkd.core.errors import ConfigError
from gkd.runs.comparison import Comparison, compare, format_comparison, format_comparison_markdown
from gkd.runs.run import Run, read_runs
from gkd.runs.text_table import MAX_CELL_LENGTH, escape_markdown, format_markdown, format_terminal
from tests.runs.made_runs import DISTILLED, HOSTILE, line, lines, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    control = write_run(tmp_path / "control", metrics=lines(loss=4.0, accuracy=0.8))
    student = write_run(tmp_path / "gkd", config=DISTILLED, metrics=lines(loss=3.0, accuracy=0.9))
    return read_runs([control, student])


def rows(found: Comparison) -> dict[tuple[str, str], list[str]]:
    return {(row[0], row[1]): list(row[2:]) for row in found.figure_rows}


def test_figures_tell_the_difference_to_the_first_run(runs: list[Run]) -> None:
    assert rows(compare(runs)) == {
        ("eval/lfw/accuracy", "best"): ["0.8000", "0.9000 (+0.1000)"],
        ("eval/lfw/accuracy", "last"): ["0.7000", "0.8000 (+0.1000)"],
        ("loss/total", "best"): ["4", "3 (-1)"],
        ("loss/total", "last"): ["4", "3 (-1)"],
        ("time/images_per_second", "median"): ["125", "125 (+0)"],
    }


def test_named_metrics_are_told_alone(runs: list[Run]) -> None:
    assert rows(compare(runs, ["optim/lr"])) == {("optim/lr", "last"): ["0", "0 (+0)"]}
    with pytest.raises(ConfigError, match=r"--metric loss/totl: .*did you mean loss/total"):
        compare(runs, ["loss/totl"])


def test_missing_figure_has_no_difference(runs: list[Run], tmp_path: Path) -> None:
    bare = read_runs([write_run(tmp_path / "bare", metrics=[line(1, loss__total=1.0)])])
    assert rows(compare([*bare, *runs]))["eval/lfw/accuracy", "best"] == ["-", "0.8000", "0.9000"]
    assert rows(compare([*runs, *bare]))["eval/lfw/accuracy", "best"] == ["0.8000", "0.9000 (+0.1000)", "-"]


def test_terminal_text_has_its_blocks(runs: list[Run]) -> None:
    text = format_comparison(compare(runs))
    titles = ["Runs", "Settings that differ", "Figures, and in brackets the difference to control"]
    assert [one for one in text.split("\n") if one in titles] == titles
    assert re.search(r"^distill\.0\.weight +- +0\.5$", text, re.MULTILINE)
    assert "optim.lr" not in text.split("Settings that differ")[1].split("Figures")[0]


def test_equal_configs_are_told_so(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, config={"run": {"folder": name, "seed": 1}}) for name in ("a", "b")]
    assert "None: the configs are equal but for run.folder." in format_comparison(compare(read_runs(folders)))


def test_damage_is_told(runs: list[Run], tmp_path: Path) -> None:
    bad = read_runs([write_run(tmp_path / "bad", metrics=b"x\n")])
    assert "bad: metrics.jsonl: 1 damaged line is left out" in format_comparison(compare([*runs, *bad]))


def test_markdown_shows_hostile_texts_as_they_are(tmp_path: Path) -> None:
    name = "a|b`c`*_$[x](y)<b>"
    folders = [write_run(tmp_path / name, config={"run": {"seed": HOSTILE}}), write_run(tmp_path / "other")]
    text = format_comparison_markdown(compare(read_runs(folders)), "curves.png")
    tables = [one for one in text.splitlines() if one.startswith("|")]
    for one in tables:
        cells = re.split(r"(?<!\\)\|", one)
        assert len(cells) in (4 + 1, 5 + 2, 6)
    assert not re.search(r"(?<!\\)[<`$]", text.split("## Curves")[0])
    assert text.endswith("![Curves of the runs](<curves.png>)\n")


def test_markdown_without_a_picture(runs: list[Run]) -> None:
    assert "Curves" not in format_comparison_markdown(compare(runs))


def test_escapes_come_back_as_the_text() -> None:
    text = r"\`*_{}[]<>#|~$!& plain"
    assert re.sub(r"\\(.)", r"\1", escape_markdown(text)) == text


def test_tables_align_texts_left_and_figures_right() -> None:
    rows = [["a", "1"], ["bb", "22"], ["x" * 100, "3"]]
    shown = format_terminal(["name", "figure"], rows, 1).splitlines()
    assert shown[2] == "a".ljust(MAX_CELL_LENGTH) + "  " + "1".rjust(6)
    assert shown[4].startswith("x" * (MAX_CELL_LENGTH - 1) + "…")
    assert format_markdown(["n", "f"], rows[:1], 1) == "| n | f |\n| :-- | --: |\n| a | 1 |\n"
