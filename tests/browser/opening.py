"""The results page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb")


def executable() -> str:
    """The browser's path.

    Raises:
      FileNotFoundError: none is installed.
    """
    found = os.environ.get("JCREDIT_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError(f"no browser: none of {', '.join(NAMES)}; apt-get install chromium, or JCREDIT_BROWSER")
    return found


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable(), args=list(ARGUMENTS))
        try:
            yield running
        finally:
            running.close()


class Opened:
    """A page with what it complained of and asked for."""

    def __init__(self, context: Any, path: Path):
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri())


def opened(running: Any, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> Opened:
    """The file in a window of that size, in light or dark."""
    context = running.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    return Opened(context, path)
