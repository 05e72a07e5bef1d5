"""A real browser for the tests of the report: one that this machine has; none is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--hide-scrollbars")
WIDTHS = {"phone": 390, "desktop": 1280}


def path() -> str | None:
    """The browser's program, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def started() -> Iterator[Browser]:
    """A headless browser with a profile of its own, which is thrown away."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def accessibility_faults(browser: Browser, file: Path, width: int, scheme: Any) -> list[list[str]]:
    """What axe-core finds in a page with everything opened: the rule, and the first element that breaks it.

    POTSTILL_AXE names its file axe.min.js (`npm pack axe-core`); without it, the test is skipped.
    """
    axe = os.environ.get("POTSTILL_AXE")
    if not axe:
        pytest.skip("POTSTILL_AXE does not name axe.min.js of axe-core")
    window: Any = {"width": width, "height": 800}
    context = browser.new_context(viewport=window, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    try:
        page = context.new_page()
        page.goto(address(file))
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        page.add_script_tag(path=axe)
        return page.evaluate("async () => (await axe.run()).violations.map(v => [v.id, v.nodes[0].html])")
    finally:
        context.close()


def address(file: Path) -> str:
    return file.resolve().as_uri()
