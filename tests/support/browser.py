"""A real browser for tests: Debian's chromium, driven by playwright, which speaks its DevTools protocol.

Playwright's own download of browsers is not used.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

_PROGRAMS = ("chromium-headless-shell", "chromium")
SCREENSHOTS = os.environ.get("PAGEPOOL_SCREENSHOTS", "")
"""Directory for screenshots; none are made without it."""


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser for the length of a block. Skips the test if none is installed."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip("needs chromium-headless-shell (apt-get install chromium-headless-shell)")
    # Its sandbox cannot be made in most containers, and not by root; the pages are our own.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def shoot(page: Page, name: str, *, whole: bool = True) -> None:
    """Keep a picture of a page, if pictures are wanted."""
    if SCREENSHOTS:
        page.screenshot(path=str(Path(SCREENSHOTS) / f"{name}.png"), full_page=whole)
