"""TensorBoard on a run, looked at in a browser: curves, histograms, pictures, settings and embeddings are there."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gkd.cli.train import main
from tests.browser.webdriver import Browser
from tests.train.tiny_run import config, write_data

pytestmark = pytest.mark.browser

# TensorBoard keeps most of its page in shadow trees and frames, which no selector looks into.
EVERYTHING = """
const found = {text: [], pictures: [], shapes: []};
const look = (node) => {
  if (node.nodeType === Node.TEXT_NODE) {
    if (node.textContent.trim()) found.text.push(node.textContent.trim());
    return;
  }
  if (["STYLE", "SCRIPT"].includes(node.tagName)) return;
  if (node.tagName === "IMG" && node.naturalWidth) found.pictures.push([node.naturalWidth, node.naturalHeight]);
  const isDrawn = node.tagName === "path" && node.getBoundingClientRect().width > 20;
  if (isDrawn) found.shapes.push(node.getAttribute("d") || "");
  if (node.tagName === "IFRAME" && node.contentDocument?.body) look(node.contentDocument.body);
  if (node.shadowRoot) look(node.shadowRoot);
  node.childNodes.forEach(look);
};
look(document.body);
return found;
"""
SECONDS = 40.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A teacher and its student, with all that a run can show; their images are noise."""
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder)
    train = {"epochs": 1, "batch_size": 8, "log_every": 1}
    assert main([str(config(folder, train=train)), f"run.folder={folder / 'runs' / 'teacher'}"]) == 0
    teacher = {"run": str(folder / "runs" / "teacher"), "check_pairs": str(folder / "pairs.bin")}
    terms = [{"loss": {"name": "gkd", "grouping": {"name": "top_k", "k": 3}}, "warmup_epochs": 0}]
    path = config(
        folder,
        train=train,
        teacher={**teacher, "min_accuracy": 0.3, "min_train_rank1": 0.1},
        distill=terms,
        log={"histograms_every": 2, "images": True, "images_every": 3, "num_images": 4, "projector": 12},
    )
    assert main([str(path), f"run.folder={folder / 'runs' / 'student'}"]) == 0
    return folder / "runs"


@pytest.fixture(scope="module")
def address(runs) -> Iterator[str]:
    """TensorBoard on a free port of this machine."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--load_fast", "false"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = iter(process.stdout)
    try:
        found = next((match[0] for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+/", line))), None)
        assert found is not None, "TensorBoard did not start"
        reader = threading.Thread(target=lambda: [None for _ in lines], daemon=True)  # or a full pipe would stop it
        reader.start()
        yield found
    finally:
        process.terminate()
        process.wait(timeout=30)
    reader.join(timeout=30)
    process.stdout.close()


def shown(browser: Browser, address: str, tab: str, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the page of `tab` shows once `is_there`."""
    browser.devtools("Page.navigate", url="about:blank")  # another fragment alone would not load the page anew
    browser.devtools("Page.navigate", url=f"{address}#{tab}")
    found: dict[str, Any] = {}
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        found = browser.run(EVERYTHING)
        if is_there(found):
            return found
        time.sleep(0.2)
    raise AssertionError(f"{tab} shows only {found}")


def keep(browser: Browser, tmp_path: Path, tab: str) -> None:
    """A picture of the page in the test's folder, to be looked at."""
    path = tmp_path / f"{tab}.png"
    browser.screenshot(path)
    assert path.stat().st_size > 20_000


def test_scalars_are_curves(browser, address, tmp_path):
    wanted = {"loss/total", "loss/gkd/primary", "loss/classification"}

    def is_there(page):
        tags = {text.removeprefix("tag: ") for text in page["text"]}
        return wanted <= tags and any(len(shape) > 40 for shape in page["shapes"])

    page = shown(browser, address, "scalars&tagFilter=loss", is_there)
    assert {"student/tensorboard", "teacher/tensorboard"} <= set(page["text"])
    keep(browser, tmp_path, "scalars")


def test_histograms_are_drawn(browser, address, tmp_path):
    wanted = {f"samples/{name}" for name in ("target_cosine", "gkd/group_size", "gkd/student_primary_mass")}

    def is_there(page):
        return wanted <= set(page["text"]) and sum(len(shape) > 100 for shape in page["shapes"]) >= 6

    shown(browser, address, "histograms", is_there)
    keep(browser, tmp_path, "histograms")


def test_pictures_are_shown_in_full(browser, address, tmp_path):
    # 2 x 2 images of 32 pixels, enlarged to 128, over three lines of text.
    size = [2 * 128 + 4, 2 * (128 + 3 * 13 + 3) + 4]
    page = shown(browser, address, "images", lambda page: page["pictures"].count(size) == 2)
    assert {"images/augmented", "images/hardest"} <= set(page["text"])
    keep(browser, tmp_path, "images")


def test_settings_stand_beside_the_results(browser, address, tmp_path):
    def is_there(page):
        return {"student", "teacher", "backbone.name", "iresnet18"} <= set(page["text"])

    page = shown(browser, address, "hparams", is_there)
    assert any("eval/pairs/accuracy" in text for text in page["text"])
    keep(browser, tmp_path, "hparams")


def test_embeddings_have_their_labels(browser, address, tmp_path):
    wanted = {"student embeddings", "12x16", "label", "name", "sample_id"}
    shown(browser, address, "projector", lambda page: wanted <= set(page["text"]))
    keep(browser, tmp_path, "projector")
