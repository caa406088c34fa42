"""The list of runs: its table, its order, its JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gkd.core.errors import ConfigError
from gkd.runs.listing import TITLES, format_list, run_cells, run_record, sort_runs
from gkd.runs.run import Run, read_runs
from tests.runs.made_runs import DISTILLED, START, line, lines, write_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Three runs that end at losses 3, 1, 2 with best accuracies 0.8, 0.7 and 0.9, then one that has logged nothing."""
    starts = [[{**START, "time": f"2026-01-0{day}T00:00:00+0000"}] for day in (2, 3, 1)]
    figures = [(3.0, 0.8), (1.0, 0.7), (2.0, 0.9)]
    folders = [
        write_run(tmp_path / f"run{place}", starts=start, metrics=lines(loss=loss, accuracy=accuracy))
        for place, (start, (loss, accuracy)) in enumerate(zip(starts, figures, strict=True))
    ]
    folders.append(write_run(tmp_path / "empty", config=DISTILLED, starts=[], metrics=b""))
    return read_runs(folders)


def test_cells_stand_under_their_titles(runs: list[Run]) -> None:
    assert dict(zip(TITLES, run_cells(runs[0]), strict=True)) == {
        "name": "run0",
        "state": "finished",
        "student": "mobilefacenet 128-d",
        "head": "softmax + cosface 0.4",
        "distillation": "none",
        "data": "celeba/train.rec",
        "started": "2026-01-02 00:00",
        "commit": "01234567",
        "steps": "40",
        "accuracy": "0.8000",
        "last": "0.7000",
        "loss": "3",
        "images/s": "125",
    }


def test_table_has_a_line_a_run_and_tells_damage(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", metrics=b"{}\n")
    text = format_list(read_runs([tmp_path / "a", tmp_path / "b"]))
    table, legend = text.split("\n\n")
    assert len(table.splitlines()) == 4
    assert len({len(one) for one in table.splitlines()[1:3]}) == 1
    assert legend.splitlines()[1:] == ["b: metrics.jsonl: 1 damaged line is left out"]


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("name", "empty run0 run1 run2"),
        ("started", "run2 run0 run1 empty"),
        ("loss", "run1 run2 run0 empty"),
        ("loss/total", "run1 run2 run0 empty"),
        ("accuracy", "run2 run0 run1 empty"),
        ("eval/lfw/accuracy", "run2 run0 run1 empty"),
        ("distillation", "empty run0 run1 run2"),
        ("steps", "run0 run1 run2 empty"),
    ],
)
def test_order(runs: list[Run], key: str, order: str) -> None:
    assert " ".join(run.name for run in sort_runs(runs, key)) == order


def test_order_turned_round_keeps_what_is_missing_last(runs: list[Run]) -> None:
    assert [run.name for run in sort_runs(runs, "accuracy", is_reversed=True)] == ["run1", "run0", "run2", "empty"]


def test_loss_that_is_not_finite_comes_last(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"run{place}", metrics=[line(1, loss__total=loss)])
        for place, loss in enumerate((math.nan, 2.0, 1.0))
    ]
    assert [run.name for run in sort_runs(read_runs(folders), "loss")] == ["run2", "run1", "run0"]


def test_unknown_key_names_the_nearest(runs: list[Run]) -> None:
    with pytest.raises(ConfigError, match=r"--sort eval/lfw/acuracy: none of the runs .* did you mean eval/lfw/accu"):
        sort_runs(runs, "eval/lfw/acuracy")
    with pytest.raises(ConfigError, match=r"--sort §: .*; known: name, state, student"):
        sort_runs(runs, "§")


def test_record_is_plain_json(runs: list[Run], tmp_path: Path) -> None:
    record = json.loads(json.dumps(run_record(runs[0]), allow_nan=False))
    assert record["figures"]["eval/lfw/accuracy"] == {
        "best": 0.8,
        "best_step": 20,
        "last": pytest.approx(0.7),
        "last_step": 40,
        "median": pytest.approx(0.75),
    }
    assert record["figures"]["accuracy"] == record["figures"]["eval/lfw/accuracy"]
    assert (record["state"], record["step"], record["total_steps"]) == ("finished", 40, 40)
    assert (record["git_commit"], record["num_starts"]) == (START["git_commit"], 1)
    bad = read_runs([write_run(tmp_path / "bad", metrics=[line(1, loss__total=math.nan)])])[0]
    assert json.loads(json.dumps(run_record(bad), allow_nan=False))["figures"]["loss/total"]["last"] is None


def test_record_of_a_run_without_anything(runs: list[Run]) -> None:
    record = run_record(runs[3])
    assert (record["started"], record["git_commit"], record["figures"]) == (None, None, {})
