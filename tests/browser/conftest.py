"""A headless browser for the tests of a page, or a skip with a message where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.browser.webdriver import Browser


# Of each module: a page that goes on working, as TensorBoard's does, would cost all later tests their time.
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs chromium and chromedriver on the PATH (Debian: apt-get install chromium chromium-driver)")
    with Browser(chromium, chromedriver, tmp_path_factory.mktemp("browser")) as found:
        yield found
