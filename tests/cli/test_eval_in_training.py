"""`evaluation.max_seconds`: which sets a run is evaluated on, and which evaluations have a score."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gkd.cli import train
from gkd.inference.embed import evaluate_pairs
from gkd.inference.evaluation_budget import evaluate_within
from tests.cli.pair_files import logging_as_before
from tests.train.tiny_run import config, write_data

__all__ = ["logging_as_before"]  # a fixture


class Clock:
    """Time that passes only while pairs are evaluated: `rates` are the seconds of each set in turn."""

    def __init__(self, rates: Iterator[float]) -> None:
        self.now = 0.0
        self.rates = rates

    def __call__(self) -> float:
        return self.now

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        self.now += next(self.rates)
        return evaluate_pairs(*arguments, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    for name in ("b", "c"):
        shutil.copy(tmp_path / "pairs.bin", tmp_path / f"{name}.bin")
    return tmp_path


def run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, rates: list[float], *options: str, max_seconds: str = "10"
) -> tuple[list[dict[str, Any]], dict[int, float | None]]:
    """Train for two epochs; the figures of each evaluation, and the score of each step's checkpoint."""
    clock = Clock(iter(rates))
    monkeypatch.setattr(train, "evaluate_within", functools.partial(evaluate_within, clock=clock))
    monkeypatch.setattr(train, "evaluate_pairs", clock.evaluate)
    sets = ",".join(str(folder / f"{name}.bin") for name in ("pairs", "b", "c"))
    given = [f"evaluation.sets=[{sets}]", f"evaluation.max_seconds={max_seconds}", "train.keep_last=5", *options]
    assert train.main([str(config(folder)), *given]) == 0
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    markers = sorted((folder / "run" / "checkpoints").glob("step_*/complete.json"))
    scores = {int(marker.parent.name[5:]): json.loads(marker.read_text())["score"] for marker in markers}
    return [line for line in lines if any(name.startswith("eval/") for name in line)], scores


def sets_of(line: dict[str, Any]) -> list[str]:
    return [name.split("/")[1] for name in line if name.endswith("/accuracy")]


def mean_accuracy(line: dict[str, Any], *names: str) -> float:
    return sum(line[f"eval/{name}/accuracy"] for name in names) / len(names)


def test_without_a_limit_all_sets_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, scores = run(monkeypatch, folder, [100.0] * 6, max_seconds="null")
    assert [sets_of(line) for line in lines] == [["pairs", "b", "c"]] * 2
    assert scores == {
        6 * (i + 1): pytest.approx(mean_accuracy(line, "pairs", "b", "c")) for i, line in enumerate(lines)
    }


def test_a_set_left_out_at_first_is_told_once_and_never_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Later there would be time for it."""
    lines, scores = run(monkeypatch, folder, [4.0, 4.0, 0.1, 0.1])
    assert [sets_of(line) for line in lines] == [["pairs", "b"]] * 2
    assert scores[6] == pytest.approx(mean_accuracy(lines[0], "pairs", "b"))
    assert scores[12] == pytest.approx(mean_accuracy(lines[1], "pairs", "b"))
    told = capsys.readouterr().err
    assert told.count("c is not evaluated") == 1
    assert "no score" not in told


def test_an_evaluation_that_lacks_a_set_has_no_score(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, scores = run(monkeypatch, folder, [3.0, 3.0, 3.0, 6.0])
    assert [sets_of(line) for line in lines] == [["pairs", "b", "c"], ["pairs"]]
    assert scores == {6: pytest.approx(mean_accuracy(lines[0], "pairs", "b", "c")), 12: None}
    assert "this evaluation has no score: b, c took no part" in capsys.readouterr().err


def test_a_run_that_goes_on_keeps_to_its_sets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, folder, [6.0, 6.0])  # the first set alone, twice
    shutil.rmtree(folder / "run" / "checkpoints" / "step_00000012")
    lines, scores = run(monkeypatch, folder, [0.1])
    assert sets_of(lines[-1]) == ["pairs"]
    assert scores[12] == pytest.approx(mean_accuracy(lines[-1], "pairs"))
    shutil.rmtree(folder / "run" / "checkpoints" / "step_00000012")
    lines, _ = run(monkeypatch, folder, [0.1] * 3, max_seconds="20")  # other settings: chosen anew
    assert sets_of(lines[-1]) == ["pairs", "b", "c"]


@pytest.mark.parametrize("names", [["pairs", "gone"], "pairs", [], [["pairs"]], {"pairs": 1}])
def test_sets_that_a_checkpoint_should_not_name_are_ignored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, names: object
) -> None:
    run_of = train.Run.__new__(train.Run)
    run_of.pair_sets = {"pairs": None, "b": None}  # type: ignore[dict-item]
    assert run_of._known_sets(names) is None
    assert run_of._known_sets(["b", "pairs"]) == ["pairs", "b"]


@pytest.mark.parametrize("seconds", ["0", "-1", ".nan", ".inf"])
def test_a_limit_is_a_number_above_0(folder: Path, capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    assert train.main([str(config(folder)), f"evaluation.max_seconds={seconds}"]) == 2
    assert "max_seconds" in capsys.readouterr().err
