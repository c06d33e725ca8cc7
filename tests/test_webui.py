"""The web UI in a real browser: Chromium without a window, by WebDriver's plain HTTP protocol."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, missing
from server import DEADLINE_S, Server, folders, serving, until

FLAGS = (
    # Chromium's sandbox refuses root, as whom CI runs in its container.
    *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"),
    # No connection but to the tested server.
    *("--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
ENTER = "\ue007"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""WebDriver's name for a reference to an element."""


class Browser:
    """A session of Chromium, driven by chromedriver."""

    def __init__(self, driver: str, profile: Path) -> None:
        self.process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        self.session = ""
        try:
            self.session = self._start(profile)
        except BaseException:
            self.close()
            raise

    def _start(self, profile: Path) -> str:
        assert self.process.stdout
        found = (re.search(r"successfully on port (\d+)", line) for line in self.process.stdout)
        port = next((match[1] for match in found if match), None)
        assert port, f"chromedriver ended with exit code {self.process.wait()}"
        self.url = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        made = self._call("POST", "/session", wanted)
        return f"/session/{made['sessionId']}"

    def _call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(self.url + path, method=method)
        if method == "POST":
            request.data = json.dumps(body or {}).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()}") from None

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("POST", f"{self.session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a JavaScript function body returns in the page."""
        return self._call("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def type(self, selector: str, text: str) -> None:
        """Type into the element that a CSS selector finds, as a user's keyboard does."""
        where = {"using": "css selector", "value": selector}
        element = self._call("POST", f"{self.session}/element", where)[ELEMENT]
        self._call("POST", f"{self.session}/element/{element}/value", {"text": text})

    def screenshot(self, path: Path) -> None:
        """Write what the page looks like as a PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", f"{self.session}/screenshot")))

    def close(self) -> None:
        """End Chromium and its driver."""
        try:
            if self.session:
                self._call("DELETE", self.session)
        finally:
            self.process.terminate()
            self.process.wait(30)
            if self.process.stdout:
                self.process.stdout.close()


@pytest.fixture(scope="module")
def driver() -> str:
    """The chromedriver program; asked for first, since without it nothing need be served."""
    found = shutil.which("chromedriver")
    if not found or not shutil.which("chromium"):
        missing("Chromium", "apt install chromium chromium-driver")
    return found or ""


@pytest.fixture(scope="module")
def demo(driver: str, real_bins: Path, demo_gguf: Path) -> Iterator[Server]:
    """The served demo model."""
    with serving(*folders(real_bins.parent, demo_gguf.parents[2])) as server:
        yield server


@pytest.fixture
def browser(driver: str, tmp_path: Path) -> Iterator[Browser]:
    """A browser with a fresh profile."""
    browser = Browser(driver, tmp_path / "profile")
    try:
        yield browser
    finally:
        browser.close()


MESSAGES = (
    "return [...document.querySelectorAll('[aria-label^=\"{} message\"]')].map(e => e.innerText)"
)
"""Texts of the messages that the user, or the assistant, has in the page."""


def words(answers: list[str]) -> list[str]:
    """What the model said, without the figures that the page shows below it."""
    return re.findall(r"[a-z]+", "".join(answers).partition("\ndemo\n")[0].lower())


def test_a_message_is_sent_and_answered(demo: Server, browser: Browser, tmp_path: Path) -> None:
    def messages(role: str) -> list[str]:
        found = browser.run(MESSAGES.format(role))
        assert isinstance(found, list)
        return found

    try:
        browser.open(demo.summary["web UI"])
        until(lambda: bool(browser.run("return document.querySelector('textarea')")), "the UI")
        assert "llama" in browser.run("return document.title").lower()
        assert messages("User") == messages("Assistant") == []
        browser.type("textarea", "Tell me a story about a cat." + ENTER)
        # The figures below an answer stand there from its first token on: they mark no end.
        until(lambda: len(words(messages("Assistant"))) > 10, "an answer in the page")
        (asked,), (answer,) = messages("User"), messages("Assistant")
    finally:
        browser.screenshot(tmp_path / "page.png")
    assert asked.startswith("Tell me a story about a cat.")
    assert re.search(r"\n\d+ tokens", answer), answer
    vocabulary = set((ROOT / "models/demo/vocabulary.txt").read_text("utf-8").split())
    found = words([answer])
    assert sum(word in vocabulary for word in found) > 0.9 * len(found), answer
