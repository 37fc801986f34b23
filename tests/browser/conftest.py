"""Debian's Chromium, driven by Playwright; a page that the tests open must run without a word and load nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

# No sandbox: tests may run as root. The others keep the browser itself from looking for hosts of its maker.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser a file: Playwright's event loop must not run on while other files' tests do."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed (as root: apt-get install chromium; `make test` tries it)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def origins() -> tuple[str, ...]:
    """How addresses begin that a page may ask for: the disk's. A file whose pages come from elsewhere has its own."""
    return ("file:",)


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest, origins: tuple[str, ...]) -> Iterator[Page]:
    """A new page, by default wide and light (`indirect` parameters: of the browser's context).

    Fails the test on anything in the console, an error of a script, a dialog, or a request to anywhere else. That a
    service refused a request is said in the console too, and is the page's to say.
    """
    context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **getattr(request, "param", {})})
    page = context.new_page()
    found: list[str] = []

    def logged(message: ConsoleMessage) -> None:
        refused = message.text.startswith("Failed to load resource") and not message.location["url"].startswith("file:")
        if not refused:
            found.append(f"console: {message.text}")

    page.on("console", logged)
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("request", lambda asked: None if asked.url.startswith(origins) else found.append(f"request: {asked.url}"))

    def refuse(dialog: object) -> None:
        found.append(f"dialog: {dialog.message}")  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", refuse)
    yield page
    context.close()
    assert found == []
