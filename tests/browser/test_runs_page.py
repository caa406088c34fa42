"""The page of runs in a real browser: filter, order, switches, curves, tips, and nothing from outside."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gkd.runs.page import write_page
from gkd.runs.run import read_runs
from tests.browser.webdriver import Browser
from tests.runs.made_runs import DISTILLED, HOSTILE, line, lines, write_run

pytestmark = pytest.mark.browser

CHART = "#charts figure:nth-child({}) svg"
LOSSES = [8.0, 2.0, 6.0, 1.0]
NUM_MANY = 40


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: a control, a distilled one that was stopped, and one with a hostile name and a gap in its loss."""
    folder = tmp_path_factory.mktemp("runs")
    logged = [
        line(10 * (at + 1), loss__total=loss, epoch=0.5 * (at + 1), time__step_seconds=360.0)
        for at, loss in enumerate(LOSSES)
    ]
    gap = [line(10, loss__total=3.0), line(20, loss__total=math.nan), line(30, loss__total=5.0), line(40, x=1.0)]
    folders = [
        write_run(folder / "control", metrics=[*logged, *lines()[-1:]]),
        write_run(folder / "gkd", config=DISTILLED, metrics=lines(loss=2.0, accuracy=0.95)[:3]),
        write_run(folder / HOSTILE.replace("/", "|"), config={"run": {"seed": HOSTILE}}, metrics=gap),
    ]
    path = folder / "runs.html"
    write_page(path, read_runs(folders), title=HOSTILE)
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    folders = [
        write_run(
            folder / f"run_with_a_rather_long_name_and_seed{place}",
            config={**DISTILLED, "run": {"seed": place}},
            metrics=lines(2000, 2, loss=1 + place / 9, accuracy=0.5 + place / 100),
        )
        for place in range(NUM_MANY)
    ]
    path = folder / "runs.html"
    write_page(path, read_runs(folders))
    return path


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    show(browser, page)
    return browser


def show(browser: Browser, page: Path, width: int = 1280, scheme: str = "light") -> None:
    browser.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
    )
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page)
    wait_until(browser, "return document.querySelectorAll('#charts svg').length > 0")


def wait_until(browser: Browser, script: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not browser.run(script):
        assert time.monotonic() < end, f"never true: {script}"
        time.sleep(0.02)


def set_value(browser: Browser, selector: str, value: object) -> None:
    """Give a control a value and tell the page, as its use would."""
    browser.run(
        "const one = document.querySelector(arguments[0]); one.value = arguments[1];"
        "for (const kind of ['input', 'change']) one.dispatchEvent(new Event(kind));",
        selector,
        str(value),
    )


def visible_runs(browser: Browser) -> list[int]:
    """The places of the rows that are shown, in the order of the table."""
    script = "return [...document.querySelectorAll('#run-table tbody tr')].filter(one => one.offsetHeight > 0)"
    return [int(place) for place in browser.run(script + ".map(one => one.dataset.run)")]


def drawn_runs(browser: Browser, chart: int = 1) -> list[int]:
    script = "return [...document.querySelectorAll(arguments[0])].map(one => one.dataset.run)"
    return [int(place) for place in browser.run(script, CHART.format(chart) + " g[data-run]")]


def path_of(browser: Browser, run: int, kind: str = ":not(.raw)", chart: int = 1) -> str:
    script = "return document.querySelector(arguments[0])?.getAttribute('d') ?? ''"
    found: str = browser.run(script, f"{CHART.format(chart)} g[data-run='{run}'] .curve{kind}")
    return found


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def heights(path: str) -> list[float]:
    """How high the points stand, from 0 for the lowest to 1 for the highest."""
    tops = [y for _, y in points(path)]
    return [(max(tops) - y) / (max(tops) - min(tops)) for y in tops]


def shares(values: Sequence[float]) -> list[float]:
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


def test_page_opens_without_errors_or_requests(browser: Browser, page: Path, many: Path) -> None:
    for path in (page, many):
        browser.log("browser")
        browser.log("performance")
        show(browser, path)
        assert browser.log("browser") == []
        others = [url for url in browser.requested_urls() if not url.startswith("data:")]
        assert others == [path.resolve().as_uri()]
    assert browser.run("return performance.getEntriesByType('resource').length") == 0


def test_names_with_markup_are_shown_as_text(opened: Browser) -> None:
    name = HOSTILE.replace("/", "|")
    for selector in ("#run-table tbody tr:nth-child(3) .name", "#chips li:nth-child(3) .name", "#details summary"):
        texts = opened.run("return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)", selector)
        assert name in texts
    assert HOSTILE in opened.run("return document.querySelector('#setting-table').textContent")
    assert opened.run("return document.title") == HOSTILE
    assert opened.run("return document.querySelectorAll('img, [onerror]').length") == 0


def test_filter_keeps_rows_with_all_words(opened: Browser) -> None:
    assert visible_runs(opened) == [0, 1, 2]
    opened.press("#filter", "GKD iresnet50")
    assert visible_runs(opened) == [1]
    assert opened.run("return document.getElementById('counts').textContent") == "1 of 3 runs"
    opened.click("#on-filtered")
    assert drawn_runs(opened) == [1]
    set_value(opened, "#filter", "gkd nowhere")
    assert visible_runs(opened) == []
    set_value(opened, "#filter", "")
    assert visible_runs(opened) == [0, 1, 2]
    set_value(opened, "#state", "stopped")
    assert visible_runs(opened) == [1, 2]


def test_titles_sort_and_turn_round(opened: Browser) -> None:
    title = "#run-table thead th:nth-child({}) button"
    opened.click(title.format(9))  # loss, the largest first
    assert visible_runs(opened) == [2, 1, 0]
    opened.click(title.format(9))
    assert visible_runs(opened) == [0, 1, 2]
    assert opened.run("return document.querySelector('th[aria-sort]').textContent") == "Loss"
    opened.click(title.format(7))  # accuracy, which the third lacks
    assert visible_runs(opened)[2] == 2
    opened.click(title.format(7))
    assert visible_runs(opened)[2] == 2
    opened.click(title.format(1))
    assert visible_runs(opened) == [2, 0, 1]


def test_switching_a_run_off_takes_it_from_curves_and_settings(opened: Browser) -> None:
    columns = "return [...document.querySelectorAll('#setting-table thead .name')].map(one => one.textContent)"
    assert drawn_runs(opened) == [0, 1, 2]
    assert len(opened.run(columns)) == 3
    opened.click("#chips li:nth-child(3) button")
    assert drawn_runs(opened) == [0, 1]
    assert opened.run(columns) == ["control", "gkd"]
    boxes = "return [...document.querySelectorAll('#run-table input')].map(one => one.checked)"
    assert opened.run(boxes) == [True, True, False]
    assert opened.run("return document.querySelector('#chips li:nth-child(3) button').ariaPressed") == "false"
    opened.click("#run-table tbody tr:nth-child(1) input")
    assert drawn_runs(opened) == [1]
    assert "two runs or more" in opened.run("return document.querySelector('#setting-table').textContent")
    opened.click("#all-off")
    assert drawn_runs(opened) == []
    assert "No run is switched on" in opened.run("return document.querySelector('#charts').textContent")
    opened.click("#all-on")
    assert drawn_runs(opened) == [0, 1, 2]


def test_curve_stands_where_its_values_do(opened: Browser) -> None:
    path = path_of(opened, 0)
    assert heights(path) == pytest.approx(shares(LOSSES), abs=0.002)
    across = [x for x, _ in points(path)]
    assert shares(across) == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.002)


def test_value_that_is_not_finite_leaves_a_gap(opened: Browser) -> None:
    assert path_of(opened, 2).count("M") == 2
    assert "L" not in path_of(opened, 2)


@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_smoothing_draws_the_moving_average(opened: Browser, weight: float) -> None:
    before = path_of(opened, 0)
    set_value(opened, "#smoothing", weight)
    assert path_of(opened, 0) != before
    averages = []
    for place in range(len(LOSSES)):
        weights = [weight ** (place - earlier) for earlier in range(place + 1)]
        total = sum(one * loss for one, loss in zip(weights, LOSSES, strict=False))
        averages.append(total / sum(weights))
    assert heights(path_of(opened, 0)) == pytest.approx(shares(averages), abs=0.01)
    assert heights(path_of(opened, 0, ".raw")) == pytest.approx(shares(LOSSES), abs=0.002)
    assert opened.run("return document.getElementById('smoothing-text').textContent") == f"{weight:.2f}"
    set_value(opened, "#smoothing", 0)
    assert path_of(opened, 0) == before


def test_logarithmic_axis(opened: Browser) -> None:
    opened.click("#logarithmic")
    assert heights(path_of(opened, 0)) == pytest.approx(shares([math.log(loss) for loss in LOSSES]), abs=0.002)


def test_other_axes(opened: Browser) -> None:
    titles = "return [...document.querySelectorAll('#charts figure:first-child svg text')].map(one => one.textContent)"
    set_value(opened, "#axis", "epochs")
    assert drawn_runs(opened) == [0, 1]
    assert "Epoch" in opened.run(titles)
    set_value(opened, "#axis", "hours")
    assert "Hours of training" in opened.run(titles)
    assert "they did not log" in opened.run("return document.getElementById('curve-hint').textContent")


def test_metric_and_group_are_chosen(opened: Browser) -> None:
    captions = "return [...document.querySelectorAll('#charts figcaption')].map(one => one.textContent)"
    set_value(opened, "#metric", "group eval")
    assert opened.run(captions) == ["eval/lfw/accuracy", "eval/lfw/accuracy_std"]
    place = opened.run(
        "return [...document.querySelectorAll('#metric option')].find(one => one.textContent === 'loss/total').value"
    )
    set_value(opened, "#metric", place)
    assert opened.run(captions) == ["loss/total"]
    assert drawn_runs(opened) == [0, 1, 2]


def test_tip_reads_the_values_under_the_pointer(opened: Browser) -> None:
    opened.click("#chips li:nth-child(2) button")
    opened.run("document.querySelector('#charts').scrollIntoView()")
    box = opened.run("const b = document.querySelector('#charts svg').getBoundingClientRect(); return [b.left, b.top]")
    for place, (across, _) in enumerate(points(path_of(opened, 0))):
        opened.devtools("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + across, y=box[1] + 100)
        text = opened.run("return document.querySelector('#charts .tip').textContent")
        assert re.search(rf"control{LOSSES[place]:g}(?!\d)", text), text
    assert opened.run("return getComputedStyle(document.querySelector('#charts .tip')).visibility") == "visible"


def test_arrow_keys_move_the_cursor(opened: Browser) -> None:
    opened.press("#charts svg", "\ue014" * 3)
    first = opened.run("return document.querySelector('#charts .cross').getAttribute('d')")
    opened.press("#charts svg", "\ue014")
    assert opened.run("return document.querySelector('#charts .cross').getAttribute('d')") != first


def test_many_runs_start_with_the_best_and_all_can_be_drawn(browser: Browser, many: Path) -> None:
    show(browser, many)
    assert drawn_runs(browser) == list(range(NUM_MANY - 8, NUM_MANY))
    browser.click("#all-on")
    assert len(drawn_runs(browser)) == NUM_MANY
    assert "first 12 of the 40 runs" in browser.run("return document.getElementById('setting-table').textContent")
    browser.press("#charts svg", "\ue014")
    assert "and 30 more runs" in browser.run("return document.querySelector('#charts .tip').textContent")


CONTRAST = r"""
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const over = (colours) => {
  canvas.clearRect(0, 0, 1, 1);
  for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const luminance = rgb => rgb.map(part => part / 255)
  .map(part => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
  .reduce((total, part, i) => total + part * [0.2126, 0.7152, 0.0722][i], 0);
const grounds = node => node ? [...grounds(node.parentElement), getComputedStyle(node).backgroundColor] : [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || node.closest("script, noscript, option")) continue;
  const style = getComputedStyle(node), inside = node.namespaceURI.endsWith("svg");
  const behind = grounds(node), text = luminance(over([...behind, inside ? style.fill : style.color]));
  const ground = luminance(over(behind));
  found.push([(Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05), node.textContent.slice(0, 40)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(browser: Browser, page: Path, scheme: str) -> None:
    show(browser, page, scheme=scheme)
    browser.click("#chips li:nth-child(3) button")
    found: list[list[Any]] = browser.run(CONTRAST)
    assert len(found) > 150
    assert [text for ratio, text in found if ratio < 4.5] == []


def test_button_switches_between_light_and_dark(opened: Browser) -> None:
    read = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(read)
    opened.click("#theme")
    assert opened.run(read) != light


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_sticks_out_at_any_width(browser: Browser, page: Path, many: Path, width: int) -> None:
    for path in (page, many):
        show(browser, path, width=width)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        widths = browser.run("return [...document.querySelectorAll('#charts svg')].map(one => one.clientWidth)")
        assert all(220 <= one <= width for one in widths)
