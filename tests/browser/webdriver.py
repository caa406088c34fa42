"""A small client of the WebDriver protocol: starts ChromeDriver, drives one headless browser, ends both."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of an element's id
_QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
)
KEYS = {"left": "\ue012", "right": "\ue014", "home": "\ue011", "end": "\ue010", "page_up": "\ue00e"}


class Browser:
    """One browser with a profile of its own in `folder`, as a context manager."""

    def __init__(self, chromium: str, chromedriver: str, folder: Path, width: int = 1280, height: int = 900) -> None:
        self._log = (folder / "chromedriver.log").open("w+", encoding="utf-8")
        self._driver = subprocess.Popen([chromedriver, "--port=0"], stdout=self._log, stderr=subprocess.STDOUT)
        try:
            self._base = f"http://127.0.0.1:{self._wait_for_port()}"
            options = {
                "binary": chromium,
                "args": [*_QUIET.split(), f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"],
            }
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            found = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._base += f"/session/{found['sessionId']}"
            self._send("POST", "/url", {"url": "about:blank"})  # the browser's own first page has a life of its own
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self._send("DELETE", "", None)
        self._stop()

    def open(self, path: Path) -> None:
        self._send("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that `script` returns; it is the body of a function of `arguments`."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, selector: str, keys: str) -> None:
        """Type into the first element that fits, as a user would."""
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        self._send("POST", f"/element/{found[_ELEMENT]}/value", {"text": keys})

    def click(self, selector: str) -> None:
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        self._send("POST", f"/element/{found[_ELEMENT]}/click", {})

    def devtools(self, command: str, **settings: Any) -> Any:
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": settings})

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last call: `browser` is the console, `performance` holds the requests."""
        found: list[dict[str, Any]] = self._send("POST", "/se/log", {"type": kind})
        return found

    def requested_urls(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path) -> None:
        """The whole page, not only what is in view."""
        found = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _send(self, method: str, place: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + place, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                told = json.load(error)["value"]
            raise RuntimeError(f"{method} {place}: {told['error']}: {told['message']}") from None

    def _wait_for_port(self) -> int:
        for _ in range(300):
            self._log.seek(0)
            found = re.search(r"started successfully on port (\d+)", self._log.read())
            if found:
                return int(found[1])
            if self._driver.poll() is not None:
                break
            time.sleep(0.1)
        self._log.seek(0)
        raise RuntimeError(f"ChromeDriver did not start: {self._log.read()[-500:]}")

    def _stop(self) -> None:
        self._driver.terminate()
        try:
            self._driver.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        self._log.close()
