"""The page of a report in a real browser: what it shows must be what NumPy counts."""

from __future__ import annotations

import math
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd.evaluation import far_name, roc_curve
from gkd.evaluation.html_report import ReportEntry, ReportModel, ReportSet, write_report
from gkd.evaluation.report_data import step_thresholds
from tests.browser.webdriver import KEYS, Browser
from tests.evaluation.report_example import HOSTILE, example

pytestmark = pytest.mark.browser

FIGURES = ("threshold", "far", "tar", "accuracy", "false-accepts", "false-rejects")
SECTION, CARD = "#set-{}", ".card:nth-child({})"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return example()


@pytest.fixture(scope="module")
def page(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, **report)
    return path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The browser with a fresh page, at the width of a desk, light."""
    show(browser, page)
    return browser


def show(browser: Browser, page: Path, width: int = 1280, scheme: str = "light", num_cards: int = 5) -> None:
    browser.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
    )
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page)
    wait_until(browser, f"return document.querySelectorAll('.card .threshold').length === {num_cards}")


def wait_until(browser: Browser, script: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not browser.run(script):
        assert time.monotonic() < end, f"never true: {script}"
        time.sleep(0.02)


def card_of(report: dict[str, Any], entry: ReportEntry) -> str:
    """The selector of an entry's card."""
    place = [one.name for one in report["sets"]].index(entry.set)
    in_set = [one.model for one in report["entries"] if one.set == entry.set]
    return f"{SECTION.format(place)} {CARD.format(1 + in_set.index(entry.model))}"


def shown(browser: Browser, card: str) -> dict[str, str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
    texts = browser.run(script, f"{card} dd")[: len(FIGURES)]
    return dict(zip(FIGURES, texts, strict=True))


def counted(entry: ReportEntry, cosine_thousandths: int) -> dict[str, str]:
    """What the page should show at a threshold, counted by comparing every pair."""
    is_accepted = entry.distances < step_thresholds()[1000 - cosine_thousandths]
    num_same, num_pairs = int(entry.is_same.sum()), len(entry.is_same)
    false_accepts, true_accepts = int((is_accepted & ~entry.is_same).sum()), int((is_accepted & entry.is_same).sum())
    right = int((is_accepted == entry.is_same).sum())
    return {
        "threshold": f"{cosine_thousandths / 1000:.3f}",
        "far": f"{100 * (false_accepts / (num_pairs - num_same)):.4f} %",
        "tar": f"{100 * (true_accepts / num_same):.2f} %",
        "accuracy": f"{100 * (right / num_pairs):.2f} %",
        "false-accepts": f"{false_accepts:,}",
        "false-rejects": f"{num_same - true_accepts:,}",
    }


def test_page_opens_without_errors_or_requests(browser: Browser, page: Path) -> None:
    browser.log("browser")
    browser.log("performance")
    show(browser, page)
    assert browser.log("browser") == []
    others = [url for url in browser.requested_urls() if not url.startswith("data:")]
    assert others == [page.resolve().as_uri()]
    names = browser.run("return performance.getEntriesByType('resource').map(one => one.name)")
    assert [name for name in names if not name.startswith("data:")] == []


def test_robustness_is_drawn_level_by_level(opened: Browser) -> None:
    """Two models whose levels differ: three points of one are at levels of the other."""
    script = (
        "const chart = [...document.querySelectorAll('#set-0 [data-degradation]')].find("
        "one => one.dataset.degradation === arguments[0]);"
        "return {groups: [...chart.querySelectorAll('circle.dot')].map(one => one.parentNode.getAttribute('class')),"
        "tops: [...chart.querySelectorAll('circle.dot')].map(one => Number(one.getAttribute('cy'))),"
        "texts: [...chart.querySelectorAll('text')].map(one => one.textContent)}"
    )
    drawn = opened.run(script, "low_blur")
    assert len(drawn["tops"]) == 8
    assert len(set(drawn["groups"][:4])) == len(set(drawn["groups"][4:])) == 1
    assert drawn["tops"][:4] == sorted(drawn["tops"][:4])  # ever lower
    assert drawn["tops"][3] == pytest.approx(drawn["tops"][6])  # both at level 2
    assert {"none", "0.5", "1", "2", "3", "sigma <in> pixels"} <= set(drawn["texts"])
    assert len(opened.run(script, HOSTILE)["tops"]) == 1


def test_page_may_not_reach_out_even_if_told_to(opened: Browser) -> None:
    opened.run(
        "window.refused = [];"
        "document.addEventListener('securitypolicyviolation', event => refused.push(event.effectiveDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => 0);"
        "new Image().src = 'http://127.0.0.1:9/a.png';"
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}));"
    )
    wait_until(opened, "return refused.length >= 3")
    assert set(opened.run("return refused")) == {"connect-src", "img-src", "script-src-elem"}
    assert opened.run("return window.ran === undefined")
    opened.log("browser")


def test_first_figures_are_at_the_threshold_of_the_protocol(opened: Browser, report: dict[str, Any]) -> None:
    for entry in report["entries"]:
        card = card_of(report, entry)
        value = round(1000 * float(shown(opened, card)["threshold"]))
        assert shown(opened, card) == counted(entry, value)
        accuracies = [((entry.distances < threshold) == entry.is_same).mean() for threshold in step_thresholds()[::5]]
        assert value == 1000 - 5 * int(np.argmax(accuracies))


def test_keys_move_the_slider_and_the_figures_follow(opened: Browser, report: dict[str, Any]) -> None:
    for entry in report["entries"]:
        card = card_of(report, entry)
        slider = f"{card} input"
        before = int(opened.run("return document.querySelector(arguments[0]).value", slider))
        moves = ((KEYS["left"] * 7, -7), (KEYS["right"] * 12, 12))
        for keys, change in moves:
            opened.press(slider, keys)
            before += change
            assert shown(opened, card) == counted(entry, before)
        for keys, edge in ((KEYS["home"], "min"), (KEYS["end"], "max")):
            opened.press(slider, keys)
            end = int(opened.run(f"return document.querySelector(arguments[0]).{edge}", slider))
            assert shown(opened, card) == counted(entry, end)
        told = opened.run("return document.querySelector(arguments[0]).getAttribute('aria-valuetext')", slider)
        now = shown(opened, card)
        assert told == f"cosine {now['threshold']}, FAR {now['far']}, TAR {now['tar']}, accuracy {now['accuracy']}"


def test_every_position_of_the_slider_shows_what_numpy_counts(opened: Browser, report: dict[str, Any]) -> None:
    script = (
        "const card = document.querySelector(arguments[0]), slider = card.querySelector('input'), found = [];"
        "for (let value = Number(slider.min); value <= Number(slider.max); value++) {"
        "  slider.value = value; slider.dispatchEvent(new Event('input'));"
        "  found.push([value, ...[...card.querySelectorAll('dd')].map(one => one.textContent)]);"
        "} return found;"
    )
    for entry in report["entries"]:
        found = opened.run(script, card_of(report, entry))
        assert len(found) > 500
        for value, *texts in found:
            assert dict(zip(FIGURES, texts, strict=True)) == counted(entry, value)
        # From accepting every pair to accepting none.
        assert found[0][5] == str(int((~entry.is_same).sum()))
        assert found[-1][5] == "0"


@pytest.mark.parametrize("total", [64, 320, 3000, 3200, 4000, 6400])
def test_rates_are_rounded_as_python_rounds_them(opened: Browser, total: int) -> None:
    script = (
        "return [2, 4].map(digits => Array.from({length: arguments[0] + 1}, (_, count) =>"
        " charts.percentText(count, arguments[0], digits)))"
    )
    for digits, found in zip((2, 4), opened.run(script, total), strict=True):
        assert found == [f"{100 * (count / total):.{digits}f}" for count in range(total + 1)]


def test_shortcut_sets_the_loosest_threshold_at_a_far(opened: Browser, report: dict[str, Any]) -> None:
    entry = report["entries"][1]
    card = card_of(report, entry)
    titles = opened.run(
        "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)", f"{card} button"
    )
    assert titles == ["best accuracy", "FAR 1e-2"]  # 320 different pairs cannot tell 1e-3
    first = shown(opened, card)
    opened.click(f"{card} button:nth-of-type(2)")
    value = round(1000 * float(shown(opened, card)["threshold"]))
    assert shown(opened, card) == counted(entry, value)

    def far_at(place: int) -> float:
        return float((entry.distances[~entry.is_same] < step_thresholds()[1000 - place]).mean())

    assert far_at(value) <= 0.01 < far_at(value - 1)
    opened.click(f"{card} button:nth-of-type(1)")
    assert shown(opened, card) == first


@pytest.mark.parametrize("kind", ["roc", "det"])
def test_marks_stay_on_their_curves(opened: Browser, kind: str) -> None:
    script = (
        "const section = document.querySelector('#set-0'), card = section.querySelectorAll('.card')[1];"
        "const slider = card.querySelector('input'), found = [];"
        "const svg = section.querySelector(`[data-chart=${arguments[0]}] svg`);"
        "const curve = svg.querySelectorAll('.curve')[1], dot = svg.querySelectorAll('.dot')[1];"
        "for (let value = Number(slider.min); value <= Number(slider.max); value += 5) {"
        "  slider.value = value; slider.dispatchEvent(new Event('input'));"
        "  const point = svg.createSVGPoint(); point.x = dot.getAttribute('cx'); point.y = dot.getAttribute('cy');"
        "  found.push([value, dot.classList.contains('beyond'), curve.isPointInStroke(point)]);"
        "} return found;"
    )
    found = opened.run(script, kind)
    inside = [is_on for _, is_beyond, is_on in found if not is_beyond]
    assert len(inside) > 20
    assert all(inside)
    assert found[-1][1]  # nothing is accepted: no point of a logarithmic axis


def far_at_cursor(browser: Browser, chart: str, num_different: int) -> float:
    """Where the cursor stands on the logarithmic axis, which runs from 0.8 false accepts to a rate of 1."""
    line = "return document.querySelector(arguments[0]).getAttribute('d')"
    found = re.fullmatch(r"M([\d.]+) [\d.]+H([\d.]+)", browser.run(line, f"{chart} .axis"))
    cursor = re.match(r"M([\d.]+)", browser.run(line, f"{chart} .cross"))
    assert found is not None
    assert cursor is not None
    left, right = (float(end) for end in found.groups())
    return float((0.8 / num_different) ** ((right - float(cursor[1])) / (right - left)))


def test_arrow_keys_read_the_curve(opened: Browser, report: dict[str, Any]) -> None:
    chart = "#set-0 [data-chart=roc]"
    read = "return document.querySelector(arguments[0]).textContent"
    seen = set()
    entries = [entry for entry in report["entries"] if entry.set == "lfw"]
    for _ in range(12):
        opened.press(f"{chart} svg", KEYS["left"] * 5)
        text = opened.run(read, f"{chart} .tip")
        lines = re.findall(r"TAR ([\d.]+) % at FAR ([\d.]+) %(\d+) false accepts, cosine ([\d.-]+)", text)
        assert len(lines) == len(entries)
        for entry, (tar, far, false_accepts, cosine) in zip(entries, lines, strict=True):
            curve = roc_curve(-entry.distances, entry.is_same)
            place = int(np.searchsorted(curve.num_false_accepts, int(false_accepts), side="right")) - 1
            assert (tar, far) == (f"{100 * curve.tar[place]:.2f}", f"{100 * curve.far[place]:.4f}")
            # No point between the one that is read and the cursor accepts more same pairs.
            at_cursor = max(
                1, math.floor(far_at_cursor(opened, chart, curve.num_different) * curve.num_different + 1e-9)
            )
            best = int(curve.num_true_accepts[curve.num_false_accepts <= at_cursor][-1])
            assert int(false_accepts) <= at_cursor
            assert curve.num_true_accepts[place] == best
            # Of several points with these counts the page tells the strictest that has this TAR.
            place = int(np.flatnonzero(curve.num_true_accepts == curve.num_true_accepts[place])[0])
            assert float(cosine) == pytest.approx(1 + curve.thresholds[place] / 2, abs=5.1e-5)
        seen.add(tuple(lines))
    assert len(seen) > 3
    opened.press(f"{chart} svg", "\ue00c")  # Escape
    assert opened.run("return getComputedStyle(document.querySelector(arguments[0])).visibility", f"{chart} .tip") == (
        "hidden"
    )


def test_names_with_markup_are_shown_as_text(opened: Browser) -> None:
    names = opened.run("return [...document.querySelectorAll('.card .name')].map(one => one.textContent)")
    assert names == ["teacher", HOSTILE, "student", "teacher", HOSTILE]
    assert opened.run("return document.querySelectorAll('[onerror], img[src=x]').length") == 0
    assert opened.run("return document.title") == "Report of <b>three</b> models"


CONTRAST = r"""
const parse = text => text.match(/[\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map(part => part / 255)
  .map(part => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
  .reduce((total, part, i) => total + part * [0.2126, 0.7152, 0.0722][i], 0);
const ground = node => {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || node.closest("script, noscript")) continue;
  const style = getComputedStyle(node), inside = node.namespaceURI.endsWith("svg");
  const text = luminance(parse(inside ? style.fill : style.color)), behind = luminance(ground(node));
  found.push([(Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05), node.textContent.slice(0, 40)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(browser: Browser, page: Path, scheme: str) -> None:
    show(browser, page, scheme=scheme)
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3])
    assert (brightness > 384) == (scheme == "light")
    found = browser.run(CONTRAST)
    assert len(found) > 150
    assert [text for ratio, text in found if ratio < 4.5] == []


def test_button_switches_between_light_and_dark(opened: Browser) -> None:
    read = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(read)
    opened.click("#theme")
    assert opened.run(read) != light
    opened.click("#theme")
    assert opened.run(read) == light


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_at_any_width(browser: Browser, page: Path, width: int) -> None:
    show(browser, page, width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    widths = browser.run("return [...document.querySelectorAll('.chart > svg')].map(one => one.viewBox.baseVal.width)")
    assert len(widths) == 2 * 2 + 2 + 2 + 5 + 1  # curves, bins, robustness, thresholds, cost
    assert all(220 <= one <= width for one in widths)


def test_charts_are_drawn_anew_when_the_width_changes(opened: Browser) -> None:
    width = "return document.querySelector('#set-0 [data-chart=roc] svg').viewBox.baseVal.width"
    before = opened.run(width)
    opened.devtools("Emulation.setDeviceMetricsOverride", width=380, height=800, deviceScaleFactor=1, mobile=True)
    wait_until(opened, f"return (() => {{ {width} }})() < {before}")
    assert opened.run("return document.querySelectorAll('#set-0 [data-chart=roc] .curve').length") == 3


def test_labels_of_charts_and_sliders_are_there_for_a_screen_reader(opened: Browser) -> None:
    unnamed = opened.run(
        "return [...document.querySelectorAll('.chart > svg, input, button, .scroll')]"
        ".filter(one => !(one.getAttribute('aria-label') || one.textContent).trim()).length"
    )
    assert unnamed == 0
    headings = opened.run("return [...document.querySelectorAll('h1, h2, h3, h4')].map(one => Number(one.tagName[1]))")
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_costs_can_be_chosen(opened: Browser, report: dict[str, Any]) -> None:
    options = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
    chosen = "#costs label:nth-of-type({}) option"
    assert opened.run(options, chosen.format(1)) == [
        "Parameters, millions",
        "GMACs",
        "File size, MB",
        "Images per second",
    ]
    assert opened.run(options, chosen.format(2)) == ["all sets, mean", "lfw", "a & b"]
    count = "return document.querySelectorAll('#costs .chart > svg .dot').length"
    assert opened.run(count) == 2
    hint = "return document.querySelector('#costs .hint').textContent"
    assert opened.run(hint).endswith("Not shown, since a figure is not known: student.")
    opened.press("#costs label:nth-of-type(1) select", "File")
    assert opened.run(count) == 1
    assert opened.run(hint).endswith(f"{HOSTILE}, student.")
    opened.press("#costs .chart > svg", KEYS["left"])
    accuracy = np.mean([entry.figures["accuracy"] for entry in report["entries"] if entry.model == "teacher"])
    tip = opened.run("return document.querySelector('#costs .tip').textContent")
    assert tip == f"teacher{100 * accuracy:.2f} % at 261 MB"


def test_axis_names_are_those_of_the_project(opened: Browser) -> None:
    texts = opened.run(
        "return [...document.querySelectorAll('#set-0 [data-chart=roc] text')].map(one => one.textContent)"
    )
    assert far_name(1e-2) in texts
    assert "False accept rate (FAR)" in texts


def odd_distances() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    is_same = np.arange(40) % 2 == 0
    generator = np.random.default_rng(0)
    return {
        "perfect": (np.where(is_same, 0.0, 4.0), is_same),
        "inverted": (np.where(is_same, 3.0, 1.0), is_same),
        "all equal": (np.full(40, 2.0), is_same),
        "all opposite": (np.full(40, 4.0), is_same),
        "random": (generator.uniform(0, 4, 40), is_same),
        "two pairs": (np.array([0.5, 1.5]), np.array([True, False])),
        "one same": (generator.uniform(1, 2, 4000), np.arange(4000) == 7),
        "one different": (generator.uniform(1, 2, 4000), np.arange(4000) != 7),
    }


def test_odd_scores_are_drawn_without_errors(browser: Browser, tmp_path: Path) -> None:
    models = [ReportModel(f"model {place} {'with a long name ' * (place == 3)}", gmacs=1.0) for place in range(12)]
    sets, entries = [], []
    for name, (distances, is_same) in odd_distances().items():
        sets.append(ReportSet(name, len(is_same), int(is_same.sum())))
        yaw = np.linspace(-90, 90, len(is_same))
        for model in models[: 12 if name == "random" else 1]:
            entries.append(
                ReportEntry(model.name, name, {"accuracy": 0.5}, distances, is_same, pair_quality=yaw, pair_yaw=yaw)
            )
    write_report(tmp_path / "odd.html", "odd", models, sets, entries)
    browser.log("browser")
    for width in (360, 1280):
        show(browser, tmp_path / "odd.html", width, num_cards=len(entries))
        assert browser.log("browser") == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
        broken = browser.run(
            "return [...document.querySelectorAll('svg *')].filter(one => [...one.attributes]"
            ".some(found => /NaN|Infinity|undefined/.test(found.value))).map(one => one.outerHTML.slice(0, 200))"
        )
        assert broken == []
    for place, (distances, is_same) in enumerate(odd_distances().values()):
        entry = ReportEntry("m", "s", {}, distances, is_same)
        card = f"{SECTION.format(place)} .card"
        for keys in (KEYS["home"], KEYS["end"], KEYS["left"] * 9):
            browser.press(f"{card} input", keys)
            value = int(browser.run("return document.querySelector(arguments[0]).value", f"{card} input"))
            assert shown(browser, card) == counted(entry, value)
    # A mean over all sets is that of a model which has them all.
    dots = "return document.querySelectorAll('#costs .chart > svg .dot').length"
    assert browser.run(dots) == 1
    browser.press("#costs label:nth-of-type(2) select", "random")
    assert browser.run(dots) == 12


def test_a_report_of_one_model_without_costs_is_drawn(browser: Browser, tmp_path: Path) -> None:
    distances, is_same = odd_distances()["random"]
    sets = [ReportSet("s", 40, 20), ReportSet("empty", 40, 20)]
    write_report(tmp_path / "a.html", "t", [ReportModel("m")], sets, [ReportEntry("m", "s", {}, distances, is_same)])
    browser.log("browser")
    show(browser, tmp_path / "a.html", num_cards=1)
    assert browser.log("browser") == []
    assert browser.run("return document.querySelectorAll('.chart > svg').length") == 3
