"""One headless browser for all tests of pages, or a skip with a message where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.browser.webdriver import Browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs chromium and chromedriver on the PATH (Debian: apt-get install chromium chromium-driver)")
    with Browser(chromium, chromedriver, tmp_path_factory.mktemp("browser")) as found:
        yield found
