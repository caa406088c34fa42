"""The HTML page without a browser: complete, bounded, and text where its runs hold markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gkd.runs import page_data as data_module
from gkd.runs.page import runs_page, write_page
from gkd.runs.page_data import page_data
from gkd.runs.run import Run, read_runs
from tests.runs.made_runs import DISTILLED, HOSTILE, START, line, lines, write_run

NOW = 1_700_000_000.0


class Elements(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(*runs: Run) -> str:
    return runs_page(runs, "Training runs", [], NOW)


def embedded(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="runs-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def hostile_run(tmp_path: Path) -> Run:
    folder = tmp_path / HOSTILE.replace("/", "|")
    start = {**START, "command": [HOSTILE], "device": HOSTILE, HOSTILE: HOSTILE, "git_commit": HOSTILE, "time": HOSTILE}
    config = {"backbone": {"name": HOSTILE}, "train": {"epochs": HOSTILE, HOSTILE: HOSTILE}, "distill": []}
    metrics = [{**one, HOSTILE: 1.0, f"eval/{HOSTILE}/accuracy": math.nan} for one in lines()]
    return read_runs([write_run(folder, config=config, starts=[start], metrics=metrics)])[0]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    with_note = read_runs([write_run(tmp_path / "plain", metrics=[*lines(), line(90, loss__total=math.nan)])])
    plain, hostile = with_note[0], hostile_run(tmp_path)
    expected, found = Elements(page_of(plain, plain)), Elements(page_of(plain, hostile))
    assert set(found.tags) == set(expected.tags)
    assert {name for name, _ in found.attributes} == {name for name, _ in expected.attributes}
    assert found.tags.count("script") == 2
    assert any(HOSTILE in text for text in found.texts)
    title = Elements(runs_page([plain], HOSTILE, [HOSTILE], NOW))
    assert "img" not in title.tags


def test_page_asks_for_nothing_and_names_its_own_script_and_style(tmp_path: Path) -> None:
    page = page_of(*read_runs([write_run(tmp_path / "a")]))
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert "@import" not in page
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert (len(script), len(style)) == (1, 1)
    for text in (*script, *style):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page
    assert "default-src 'none'" in page
    assert "unsafe" not in page.split("</head>")[0].split("<style>")[0]


def test_equal_runs_give_equal_bytes_and_the_file_is_whole(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", config=DISTILLED)])
    write_page(tmp_path / "out" / "runs.html", runs, now=NOW)
    assert (tmp_path / "out" / "runs.html").read_text(encoding="utf-8") == runs_page(runs, "Training runs", [], NOW)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["runs.html"]


def test_tables_need_no_script(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, metrics=lines(accuracy=best)) for name, best in (("low", 0.7), ("high", 0.9))]
    page = page_of(*read_runs(folders))
    rows = re.findall(r'<tr data-run="\d+">.*?</tr>', page)
    assert len(rows) == 2
    assert re.findall(r'data-sort="([^"]*)"', rows[1])[-4:-1] == ["0.9", repr(0.9 - 0.1), "10.0"]
    best = re.search(r"<tr><th[^>]*>eval/lfw/accuracy</th>(.*?)</tr>", page)
    assert best is not None
    assert " ".join(re.sub(r"<[^>]+>", " ", best[1]).split()) == (
        "0.9000 at step 20 high 0.7000 at step 20 low &ndash;"
    )


def test_losses_are_not_ranked(tmp_path: Path) -> None:
    page = page_of(*read_runs([write_run(tmp_path / "a")]))
    best = page.split('id="best-table"')[1].split("</table>")[0]
    assert "loss/total" not in best
    assert "time/images_per_second" in best


def test_runs_that_logged_nothing_give_a_page(tmp_path: Path) -> None:
    page = page_of(*read_runs([write_run(tmp_path / "a", metrics=b"")]))
    assert "No run has logged an evaluation." in page
    assert embedded(page)["metrics"] == []


def test_notes_are_told(tmp_path: Path) -> None:
    bad = read_runs([write_run(tmp_path / "bad", metrics=b"x\n")])
    page = runs_page(bad, "Runs", ["the search ended"], NOW)
    assert '<li class="name">the search ended</li>' in page
    assert "bad: metrics.jsonl: 1 damaged line is left out" in page
    assert 'id="notes"' not in page_of(*read_runs([write_run(tmp_path / "good")]))


def curve_of(data: Any, run: int, name: str) -> tuple[Any, Any]:
    place = [metric["name"] for metric in data["metrics"]].index(name)
    axis, values = data["runs"][run]["curves"][str(place)]
    return data["runs"][run]["axes"][axis], values


def test_data_holds_the_curves(tmp_path: Path) -> None:
    data = embedded(page_of(*read_runs([write_run(tmp_path / "a", metrics=lines(loss=1 / 3))])))
    axis, values = curve_of(data, 0, "loss/total")
    assert axis["steps"] == [10, 20, 30, 40]
    assert values == [1.33333, 0.666667, 0.444444, 0.333333]
    assert axis["hours"] == pytest.approx([step * 0.5 / 3600 for step in axis["steps"]], rel=1e-5)
    assert data["runs"][0]["epochsPerStep"] == pytest.approx(2 / 40)
    assert curve_of(data, 0, "eval/lfw/accuracy")[0]["steps"] == [20, 40]
    assert len(data["runs"][0]["axes"]) == 2  # metrics that are logged together share theirs
    assert [data["metrics"][place]["name"] for place in data["main"]][:2] == ["loss/total", "eval/lfw/accuracy"]


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    values = (1.0, math.nan, math.inf, 2.0)
    metrics = [line(step, loss__total=value, epoch=math.nan) for step, value in enumerate(values, 1)]
    data = embedded(page_of(*read_runs([write_run(tmp_path / "a", metrics=metrics)])))
    assert curve_of(data, 0, "loss/total")[1] == [1.0, None, None, 2.0]
    assert data["runs"][0]["epochsPerStep"] is None
    assert data["runs"][0]["axes"][0]["hours"] is None


def test_points_are_bounded_for_a_curve_and_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = [line(step, loss__total=1.0, optim__lr=1.0) for step in range(2000)]
    runs = read_runs([write_run(tmp_path / "a", metrics=metrics)])

    def num_points() -> set[int]:
        return {len(values) for _, values in page_data(runs)["runs"][0]["curves"].values()}

    assert num_points() == {500}
    monkeypatch.setattr(data_module, "MAX_POINTS_IN_ALL", 200)
    assert num_points() == {100}
    monkeypatch.setattr(data_module, "MAX_POINTS_IN_ALL", 20)
    assert max(num_points()) <= data_module.MIN_POINTS


def test_many_runs_start_with_the_best_switched_on(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"r{place}", metrics=lines(accuracy=0.5 + 0.01 * (place * 7 % 12)) if place % 2 else b"")
        for place in range(24)
    ]
    runs = read_runs(folders)
    on = page_data(runs)["on"]
    known = sorted((place for place in range(24) if place % 2), key=lambda place: (-(place * 7 % 12), place))
    assert on == sorted(known[:8])
    assert page_data(runs[:8])["on"] == list(range(8))


def test_settings_hold_each_text_once(tmp_path: Path) -> None:
    seeds = (1, 2, 1)
    folders = [write_run(tmp_path / f"r{at}", config={"run": {"seed": seed}}) for at, seed in enumerate(seeds)]
    assert page_data(read_runs(folders))["settings"] == [{"key": "run.seed", "texts": ["1", "2"], "places": [0, 1, 0]}]
