"""A real headless browser that opens pages from file:// and tells what went wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
_PLAYS = """video => new Promise((done, failed) => {
  video.onerror = () => failed(new Error(video.error.message));
  video.onended = () => done(played());
  const played = () => [video.readyState, video.videoWidth, video.videoHeight, video.duration, video.currentTime];
  video.loop = false; video.playbackRate = 8;
  video.play().catch(failed);
})"""


class Page:
    """An opened page, without console messages, failed requests or requests to anything but files."""

    def __init__(self, browser: Any, path: Path) -> None:
        self._path = path
        self._page = browser.new_page(viewport={"width": 1200, "height": 900})
        self.problems: list[str] = []
        self._page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self._page.on("pageerror", lambda error: self.problems.append(str(error)))
        self._page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url[:80]}"))
        self._page.on("request", self._check)
        self._page.goto(path.resolve().as_uri(), wait_until="load")

    def _check(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.problems.append(f"request to {request.url}")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        if folder := os.environ.get("DECAF_SCREENSHOTS"):
            self._page.screenshot(path=Path(folder, f"{self._path.parent.name}.png"), full_page=True)
        self._page.close()
        if kind is None:
            assert not self.problems

    @property
    def text(self) -> str:
        """The text that a reader sees."""
        return str(self._page.inner_text("body"))

    def count(self, selector: str) -> int:
        """Number of elements."""
        return int(self._page.locator(selector).count())

    def broken_images(self) -> int:
        """Number of pictures that the browser cannot show."""
        return int(self._page.evaluate("() => [...document.images].filter(one => !one.naturalWidth).length"))

    def width(self) -> int:
        """The width of the content in pixels: over 1200, the window's, if a reader has to scroll sideways."""
        return int(self._page.evaluate("() => document.documentElement.scrollWidth"))

    def play(self) -> list[float]:
        """Plays the only film to its end: ready state, width, height, duration and time reached (seconds)."""
        film = self._page.locator("video")
        assert film.count() == 1
        return list(film.evaluate(_PLAYS))


def launched() -> Iterator[Any]:
    """A browser; skips without one unless DECAF_REQUIRE_BROWSER is set."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    required = bool(os.environ.get("DECAF_REQUIRE_BROWSER"))
    if found is None:
        if required:
            raise FileNotFoundError(f"expected one of {', '.join(NAMES)}; Debian: apt install chromium-headless-shell")
        pytest.skip(f"no browser ({', '.join(NAMES)})")
    if not required:
        pytest.importorskip("playwright.sync_api")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_ARGUMENTS))
        yield browser
        browser.close()
