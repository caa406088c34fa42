"""A run folder as plain values: names, starts, words, and what is told of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gkd.runs.describe import describe
from gkd.runs.run import read_run, read_runs, run_names
from gkd.runs.starts import MAX_COMMAND_LENGTH, Start, read_starts
from tests.runs.made_runs import DISTILLED, FIRST_SECONDS, START, line, lines, write_run


def test_whole_run_is_read(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", config=DISTILLED), now=FIRST_SECONDS + 1e6)
    assert (run.name, run.state.kind, run.state.step, run.notes) == ("run", "finished", 40, ())
    assert run.config["distill.0.loss.name"] == "gkd"
    start = run.starts[0]
    assert (start.short_time, start.short_commit) == ("2026-01-02 03:04", "01234567")
    assert start.command == "tools/train.py configs/x.yaml"
    assert start.details == {"torch": "2.6.0", "num_ranks": "1"}


def test_names_are_as_long_as_they_must_be() -> None:
    paths = [Path(text) for text in ("/r/a/x", "/r/b/x", "/r/b/y", "/s/b/x")]
    assert run_names(paths) == ["a/x", "r/b/x", "y", "s/b/x"]
    assert run_names([Path("/x"), Path("/x")]) == ["//x", "//x"]
    assert run_names([Path()]) == [Path.cwd().name]


def test_names_are_printable_and_bounded(tmp_path: Path) -> None:
    names = run_names([Path("/r/a\x1b\nb\udcff"), Path("/" + "/".join(["x" * 200] * 3))])
    assert names[0] == "a\\x1b\\nb\\udcff"
    assert len(names[1]) == 100
    assert names[1].startswith("…")


def test_damage_is_told_and_the_rest_read(tmp_path: Path) -> None:
    content = b'{"step": 1, "a": NaN}\n{bad\n{"step": 2, "a": 1}\n{"ste'
    run = read_run(write_run(tmp_path / "run", config="a: [", starts="{", metrics=content))
    assert run.config == {}
    assert run.starts == (Start(),)
    assert [note.partition(":")[0] for note in run.notes[:2]] == ["config.yaml", "run.json"]
    assert run.notes[2:] == (
        "metrics.jsonl: 1 damaged line is left out",
        "metrics.jsonl: ends within a line, which is left out",
        "values that are not finite in a",
    )
    assert not any(str(tmp_path) in note for note in run.notes)


def test_folder_that_vanishes_gives_an_empty_run(tmp_path: Path) -> None:
    run = read_run(tmp_path / "gone")
    assert (run.state.kind, run.config, len(run.notes)) == ("not started", {}, 2)


def test_run_without_metrics_is_not_started(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    run = read_run(folder)
    assert (run.state.kind, run.notes) == ("not started", ())


def test_metrics_that_are_a_folder_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    assert read_run(folder).notes == ("metrics.jsonl: cannot be read: is not a regular file",)


def test_growing_run_shows_what_is_there_each_time(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metrics=b"")
    with (folder / "metrics.jsonl").open("ab") as file:
        for step in range(1, 6):
            text = json.dumps(line(step, a=step)).encode() + b"\n"
            file.write(text[:9])
            file.flush()
            assert read_run(folder).state.step == step - 1
            file.write(text[9:])
            file.flush()
            assert read_run(folder).metrics.curves["a"].values.tolist() == list(range(1, step + 1))


def starts_of(tmp_path: Path, value: Any) -> list[Start]:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(value))
    return read_starts(path)


def test_starts_of_other_versions_and_hostile_ones_are_read(tmp_path: Path) -> None:
    found = starts_of(
        tmp_path,
        [
            {"git": {"commit": "ab" * 20}},
            {"time": 5, "command": "rm", "git_commit": ["x"], "device": "\x1b[2J", "nested": {"a": 1}},
            {"command": ["x" * 9000], "git_commit": "0123456789-dirty"},
            "text",
        ],
    )
    assert [start.short_commit for start in found] == ["abababab", "", "01234567+"]
    assert (found[1].time, found[1].command, found[1].details) == ("", "", {"device": "\\x1b[2J"})
    assert len(found[2].command) == MAX_COMMAND_LENGTH
    assert len(starts_of(tmp_path, [START] * 500)) == 100


@pytest.mark.parametrize(("value", "message"), [("{}", "is not a list of starts"), ("[" * 100_000, "is damaged")])
def test_damaged_starts_are_told(tmp_path: Path, value: str, message: str) -> None:
    run = read_run(write_run(tmp_path / "run", starts=value))
    assert len(run.notes) == 1
    assert run.notes[0].startswith(f"run.json: {message}")


def words(tmp_path: Path, **config: Any) -> dict[str, str]:
    return dict(describe(read_run(write_run(tmp_path / "run", config=config)).config))


def test_words_of_a_run(tmp_path: Path) -> None:
    assert words(tmp_path) == {
        "student": "mobilefacenet 128-d",
        "head": "softmax + cosface 0.4",
        "distillation": "none",
        "data": "celeba/train.rec",
    }
    assert words(tmp_path, **DISTILLED)["distillation"] == "gkd x0.5 from iresnet50"


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        ({"backbone": {"name": "onnx:data/models/r100.onnx"}}, "r100.onnx"),
        ({"run": None, "weights": "w/r50.pt", "cache": {"folder": "x"}}, "r50.pt, cached"),
        ({"run": None, "weights": "w/r50.pt", "cache": None}, "r50.pt"),
        ({"run": ["odd"]}, "-"),
    ],
)
def test_words_of_the_teacher(tmp_path: Path, teacher: Any, text: str) -> None:
    terms = [{"loss": {"name": "gkd"}}, {"loss": {"name": "rkd"}, "weight": 25.0}]
    assert words(tmp_path, teacher=teacher, distill=terms)["distillation"] == f"gkd + rkd x25 from {text}"


def test_words_where_keys_are_missing_or_odd(tmp_path: Path) -> None:
    assert set(describe({}).values()) == {"-"}
    found = words(tmp_path, backbone={"name": ["x"], "width_multiplier": 0.5}, data={"train": {"name": "synthetic"}})
    assert (found["student"], found["data"]) == ("[x] width 0.5", "synthetic")
    more = {"train": {"path": "a/b/c.rec"}, "more": [{"train": {"path": "x"}}, {"train": {"path": "y"}}]}
    assert words(tmp_path, data=more)["data"] == "b/c.rec + 2 more"
    assert max(map(len, words(tmp_path, backbone={"name": "x" * 900}).values())) == 80


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / place / "run", metrics=lines()) for place in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]
