"""Pages as a reader has them, in headless Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = {"desktop": 1280, "phone": 390}


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser that can reach nothing, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        context = browser.new_context(offline=True)
        yield context
        context.close()
        browser.close()


@contextmanager
def opened(context: Any, path: Path, width: int) -> Iterator[Any]:
    """A page of a file, and at its end that no script of it has failed."""
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(path.absolute().as_uri())
    yield page
    page.close()
    assert not errors


def assert_readable(page: Any) -> None:
    """Nothing is wider than the window but what scrolls by itself, every picture is there, and
    every panel of a chart has its numbers."""
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], wide
    images = page.evaluate("[...document.images].map(i => [i.alt, i.complete && i.naturalWidth])")
    assert images
    assert not [alt for alt, loaded in images if not loaded]
    panels = page.locator(".panel")
    for number in range(panels.count()):
        assert panels.nth(number).locator("details tbody tr").count() > 0
