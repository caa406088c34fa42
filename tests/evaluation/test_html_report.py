"""The page of a report, without a browser: structure, escaping, figures, size, refusals."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation import html_report
from gkd.evaluation.html_report import ReportEntry, ReportModel, ReportSet, report_page, write_report
from gkd.evaluation.report_data import embedded_data
from gkd.evaluation.report_inputs import DegradationCurve, DegradedAccuracy
from tests.evaluation.report_example import HOSTILE, JPEG, drawn_cosines, drawn_entry, example

MISSING = "\u2013"
CURVE = DegradationCurve("px", (DegradedAccuracy(None, 0.5, 0.0),))
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """What a browser would see: balanced tags, texts, attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.strong: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if "strong" in self.open:
            self.strong.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, found in self.tags for key, value in found.items() if key == name and value is not None]


def of_level(level: float, accuracy: float) -> DegradationCurve:
    return DegradationCurve("px", (DegradedAccuracy(level, accuracy, 0.0),))


def script_of(text: str) -> str:
    found = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_page_is_balanced_and_complete() -> None:
    page = Page(report_page(**example()))
    assert [tag for tag, _ in page.tags if tag == "table"] == ["table"] * 4
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {"summary", "set-0", "set-1", "costs", "notes"} <= set(ids)
    anchors = [link.removeprefix("#") for link in page.attributes("href") if link.startswith("#")]
    assert set(anchors) <= set(ids)
    charts = [(found["data-chart"], found.get("data-set")) for _, found in page.tags if "data-chart" in found]
    assert charts == [
        ("roc", "0"),
        ("det", "0"),
        ("quality", "0"),
        ("yaw", "0"),
        ("roc", "1"),
        ("det", "1"),
        ("pareto", None),
    ]


def test_names_stay_text() -> None:
    text = report_page(**example())
    page = Page(text)
    assert HOSTILE in page.text
    assert "Report of <b>three</b> models" in page.text
    assert "drawn & not measured" in page.text
    assert "onerror" not in {key for _, found in page.tags for key in found}
    assert text.count("</script>") == 2
    assert "public <weights>" in page.text


def test_embedded_data_is_read_back_whole() -> None:
    report = example()
    text = report_page(**report)
    block = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', text, re.DOTALL)
    assert block is not None
    assert not set("<>&\u2028\u2029") & set(block[1])
    assert json.loads(block[1]) == embedded_data(report["models"], report["sets"], report["entries"])


def test_page_reaches_for_nothing_outside() -> None:
    text = report_page(**example())
    assert set(re.findall(r"[a-z]+://[^\"'` <]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|\bfetch\(|XMLHttpRequest|WebSocket|import\(|innerHTML|eval\(", text)
    sources = [value for _, found in Page(text).tags for key, value in found.items() if key in ("src", "srcset")]
    assert all(source is not None and source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not any(key == "style" or key.startswith("on") for _, found in Page(text).tags for key in found)


def test_policy_allows_this_script_and_style_alone() -> None:
    text = report_page(**example())
    policy = next(found["content"] for _, found in Page(text).tags if found.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    for content in (script_of(text), style[1]):
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    write_report(tmp_path / "made" / "a.html", **example())
    write_report(tmp_path / "b.html", **example())
    assert (tmp_path / "made" / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["a.html"]


def test_a_refused_report_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(DataError, match="no model"):
        write_report(path, **{**example(), "models": []})
    assert path.read_text(encoding="utf-8") == "old"


def test_size_of_a_full_report(tmp_path: Path) -> None:
    sets = [ReportSet(f"set {place}", 6000, 3000) for place in range(5)]
    models = [ReportModel(f"model {place}") for place in range(3)]
    # Weak models have the longest curves: 0 separates nothing.
    entries = [
        drawn_entry(model.name, one, 0.15 * i, 10 * i + j, pair_quality=np.arange(6000.0))
        for i, model in enumerate(models)
        for j, one in enumerate(sets)
    ]
    write_report(tmp_path / "a.html", "full", models, sets, entries)
    assert 50_000 < (tmp_path / "a.html").stat().st_size < 2_000_000


def test_tables_show_the_figures() -> None:
    report = example()
    rows = Page(report_page(**report)).rows
    entry = report["entries"][0]
    figures = {name: value for name, value in entry.figures.items() if value is not None}
    accuracy = f"{100 * figures['accuracy']:.2f} ± {100 * figures['accuracy_std']:.2f}98.70 \u2013 99.80"
    assert rows[0] == ["Model", "lfw", "a & b"]
    assert rows[1][:2] == ["teacher", accuracy]
    assert rows[3][0::2] == ["student", MISSING]
    assert rows[4] == ["Model", "Accuracy %", "TAR % at FAR 1e-2", "AUC", "EER %", "d\u2032"]
    tar, auc, eer, d_prime = (figures[name] for name in ("tar@far=1e-2", "auc", "eer", "d_prime"))
    assert rows[5] == ["teacher", accuracy, f"{100 * tar:.2f}", f"{auc:.5f}", f"{100 * eer:.2f}", f"{d_prime:.2f}"]
    costs = next(row for row in rows if "public <weights>" in row)
    assert costs == ["teacher", "public <weights>", "65.2 M", "12.1", "261 MB", "92"]


def test_costs_that_no_model_has_make_no_column() -> None:
    one = ReportSet("s", 60, 30)
    models = [ReportModel("m", gmacs=1234.5), ReportModel("n")]
    rows = Page(report_page("t", models, [one], [drawn_entry("m", one, 0.4, 0)])).rows
    assert rows[-3:] == [["Model", "GMACs"], ["m", "1,234"], ["n", MISSING]]


def test_a_figure_that_cannot_be_measured_is_missing() -> None:
    report = example()
    figures = {**report["entries"][0].figures, "accuracy": None}
    entries = [replace(report["entries"][0], figures=figures), *report["entries"][1:]]
    assert Page(report_page(**{**report, "entries": entries})).rows[1][1] == MISSING


def test_bold_only_where_better_than_all_beyond_chance() -> None:
    report = example()
    first = report["entries"][0]
    assert first.verdict_vs == {HOSTILE: "better", "student": "better"}
    shown = f"{100 * first.figures['accuracy']:.2f}"
    page = Page(report_page(**report))
    assert page.strong == [shown, shown]
    assert "Bold: better than every other" in page.text
    doubtful: dict[str, Any] = {HOSTILE: "better", "student": "no difference seen"}
    for verdicts in (doubtful, {HOSTILE: "better"}, None):
        entries = [replace(first, verdict_vs=verdicts), *report["entries"][1:]]
        page = Page(report_page(**{**report, "entries": entries}))
        assert page.strong == []
        assert "Bold" not in page.text


def test_verdicts_are_told_once_for_each_two_models() -> None:
    text = Page(report_page(**example())).text
    assert text.count("teacher is better than") == 2
    assert "is worse than" not in text
    assert f"{HOSTILE} and student: no difference seen" in text


def test_one_model_is_never_bold() -> None:
    one = ReportSet("s", 60, 30)
    page = Page(report_page("t", [ReportModel("m")], [one], [drawn_entry("m", one, 0.4, 0, verdict_vs={})]))
    assert page.strong == []
    assert "costs" not in page.attributes("id")
    assert "notes" not in page.attributes("id")


def test_a_set_without_entries_says_so() -> None:
    report = example()
    page = Page(report_page(**{**report, "sets": [*report["sets"], ReportSet("later", 10, 5)]}))
    assert "No model was evaluated on this set." in page.text


def test_pictures_are_shown_worst_first_with_a_warning() -> None:
    text = report_page(**example())
    page = Page(text)
    captions = re.findall(r"<b>(-?[\d.]+)</b> pair (\d+)</figcaption>", text)
    assert captions == [("0.543", "9"), ("0.432", "7"), ("0.012", "8")]
    assert "handle this file as personal data" in page.text
    assert f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}" in page.attributes("src")
    assert all(found.get("alt") for tag, found in page.tags if tag == "img")


def test_no_picture_is_there_unless_given() -> None:
    page = Page(report_page(**example(with_pictures=False)))
    assert [tag for tag, _ in page.tags if tag == "img"] == []
    assert "personal data" not in page.text


def changed(where: str, place: int, **changes: Any) -> dict[str, Any]:
    report = example()
    items = list(report[where])
    items[place] = replace(items[place], **changes)
    return {**report, where: items}


DISTANCES, SAME = (lambda pair: (2 - 2 * pair[0], pair[1]))(drawn_cosines(0.5, 640, 320, 0))


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({**example(), "title": " "}, "the report's title is empty"),
        ({**example(), "notes": ["a\x00b"]}, r"note 0 .*U\+0000"),
        ({**example(), "sets": []}, "no set was given"),
        (changed("models", 0, name="a\udcffb"), r"model name .*U\+DCFF"),
        (changed("models", 2, name="teacher"), "two models are named `teacher`"),
        (changed("models", 0, source="\x1b[0m"), "the source of model `teacher`"),
        (changed("models", 0, gmacs=float("nan")), "`teacher`: gmacs must be above 0 and finite, or None, got nan"),
        (changed("models", 0, file_bytes=0), "file_bytes must be above 0"),
        (changed("entries", 1, model="teacher"), "two entries for model `teacher` on set `lfw`"),
        (changed("entries", 1, model="x"), "an entry names model `x`, which is not among"),
        (changed("entries", 1, set="x"), "an entry names set `x`, which is not among"),
        (changed("entries", 0, figures={"f1": 1.0}), "unknown figure `f1`; known are accuracy"),
        (changed("entries", 0, figures={"tar@far=x": 1.0}), "unknown figure `tar@far=x`"),
        (changed("entries", 0, figures={"auc": float("inf")}), "auc is inf; give None"),
        (changed("entries", 0, intervals={"auc": (0.9, float("nan"))}), "interval of auc is nan"),
        (changed("entries", 0, intervals={"auc": (0.9, 0.8)}), "begins at 0.9, above its end 0.8"),
        (changed("entries", 0, distances=np.ones(3)), r"distances \(3,\) .* each of the set's 640 pairs"),
        (changed("entries", 0, distances=DISTANCES - 5), "640 distances are not squared distances"),
        (changed("entries", 0, distances=np.where(SAME, np.nan, 1.0)), "320 distances are not .* pair"),
        (changed("entries", 0, is_same=SAME.astype(int)), "is_same must be booleans, got int64"),
        (changed("entries", 0, is_same=np.ones(640, dtype=bool)), "640 of 640 pairs are of one person"),
        (changed("entries", 0, pair_yaw=np.zeros(2)), r"pair_yaw must have one value a pair, \(640,\), got \(2,\)"),
        (changed("entries", 0, degraded={" ": CURVE}), "name of a degradation is empty"),
        (
            changed("entries", 0, degraded={"blur": replace(CURVE, unit="a\x00")}),
            r"unit of degradation `blur` .*U\+0000",
        ),
        (
            changed("entries", 0, degraded={"blur": DegradationCurve("px", ())}),
            "degraded by blur: no level was measured",
        ),
        (changed("entries", 0, degraded={"blur": of_level(float("nan"), 0.5)}), "level=nan.* must be finite"),
        (changed("entries", 0, degraded={"blur": of_level(1.0, 1.5)}), "accuracy=1.5.* between 0 and 1"),
        (changed("entries", 0, verdict_vs={"x": "better"}), "a verdict names `x`, which is not another model"),
        (changed("entries", 0, verdict_vs={"teacher": "better"}), "a verdict names `teacher`"),
        (changed("entries", 0, verdict_vs={"student": "best"}), "against `student` must be one of .*got `best`"),
        (changed("error_pairs", 0, model="x"), "an error pair names model `x`"),
        (changed("error_pairs", 0, index=640), "error pair 640 .* the set has pairs 0 to 639"),
        (changed("error_pairs", 0, kind="miss"), "kind must be `false accept` or `false reject`, got `miss`"),
        (changed("error_pairs", 0, cosine=float("nan")), "cosine must be between -1 and 1, got nan"),
        (changed("error_pairs", 0, left_jpeg=b"<svg>"), "the left picture is not a JPEG file"),
        (changed("error_pairs", 0, right_jpeg=JPEG + bytes(1 << 20)), "the right picture has 1,048,646 bytes"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(report: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        report_page(**report)


def test_more_models_than_colours_differ_by_their_dash() -> None:
    one = ReportSet("s", 60, 30)
    names = [f"model {place}" for place in range(32)]
    page = Page(report_page("t", [ReportModel(name) for name in names], [one], [drawn_entry("model 0", one, 0.4, 0)]))
    looks = [found["class"] for _, found in page.tags if (found.get("class") or "").startswith("model m")]
    assert len(set(looks)) == 32


def colours() -> dict[str, tuple[str, str]]:
    style = (files("gkd.evaluation") / "html" / "page.css").read_text(encoding="utf-8")
    found = re.findall(r"(?:\.(m\d) \{ )?--(\w+): light-dark\((#\w{6}), (#\w{6})\)", style)
    return {name or variable: (light, dark) for name, variable, light, dark in found}


def contrast(one: str, other: str) -> float:
    """The ratio of the Web Content Accessibility Guidelines 2.1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1])
def test_texts_and_curves_stand_out_in_light_and_dark(mode: int) -> None:
    table = colours()
    assert {f"m{place}" for place in range(8)} <= set(table)
    for ground in ("card", "page"):
        for text in ("ink", "soft", "accent"):
            assert contrast(table[text][mode], table[ground][mode]) >= 4.5
    for place in range(8):
        assert contrast(table[f"m{place}"][mode], table["card"][mode]) >= 3


def test_style_and_script_cannot_end_their_element() -> None:
    for name in ("page.css", *html_report._SCRIPTS):
        content = (files("gkd.evaluation") / "html" / name).read_text(encoding="utf-8")
        assert "</" not in content
        assert "<!--" not in content


def test_entries_may_come_in_any_order() -> None:
    report = example()
    assert report_page(**{**report, "entries": report["entries"][::-1]}) == report_page(**report)


def test_entry_of_lists_is_taken() -> None:
    entry = ReportEntry("m", "s", {}, np.linspace(0, 4, 12), np.arange(12) % 2 == 0)
    assert "data-set" in report_page("t", [ReportModel("m")], [ReportSet("s", 12, 6)], [entry])
