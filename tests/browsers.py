"""A headless Chromium of the system, driven by Playwright; tests that want one are skipped where either is missing."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The path of the system's browser."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> "Generator[Browser]":
    """A browser without a window. Skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        # As root, as in a container, Chromium has no sandbox to offer.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What a page must not do: write to the console, fail a request, or ask anybody but the loopback."""

    def __init__(self, page: "Page") -> None:
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._refuse)
        page.on("request", lambda request: self._look(request.url))

    def _refuse(self, dialog: "Dialog") -> None:
        """No script of ours opens one."""
        self.errors.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def _look(self, address: str) -> None:
        if not address.startswith("http://127.0.0.1:"):
            self.foreign.append(address)
