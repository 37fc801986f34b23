"""The page of a reading in a real browser: the text as written, the switch, pointer and keyboard, both widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page
from token_tables import FACTS, NASTY, P, tokens_of

from ripieno.report.heatmap import build

BOTH = [{}, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}]
COLOUR = "cell => getComputedStyle(cell).backgroundColor"


@pytest.fixture
def reading(page: Page, tmp_path: Path) -> Page:
    t = tokens_of({"a": NASTY * 12}, [np.tile(P, 12), np.tile(P * 0.8, 12)])
    file = tmp_path / "index.html"
    file.write_text(build(t, run="demo", file="a.txt", facts=FACTS), encoding="utf-8", newline="")
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize("page", BOTH, indirect=True)
def test_the_text_stands_as_written_and_nothing_overflows(reading: Page) -> None:
    assert reading.locator(".text").evaluate("t => t.textContent") == "".join(NASTY * 12).replace("\r\n", "\n")
    assert reading.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("page", BOTH, indirect=True)
def test_the_switch_colours_by_another_measure(reading: Page) -> None:
    cell = reading.locator(".text .p5").first
    seen = {}
    for letter in "pem":
        reading.check(f"#by-{letter}")
        seen[letter] = cell.evaluate(COLOUR)
        assert reading.locator(".scale:visible").count() == 1
    assert len(set(seen.values())) == 3


def test_pointing_shows_the_numbers(reading: Page) -> None:
    cell = reading.locator(".text > span").nth(4)
    cell.hover()
    panel = reading.locator(".panel").inner_text()
    assert "</span>" in panel
    p, *_, first, second = map(float, (cell.get_attribute("data-n") or "").split())
    for value in (p, first, second):
        assert f"{100 * value:.1f}%" in panel


@pytest.mark.parametrize("page", BOTH, indirect=True)
def test_arrow_keys_go_through_the_text_and_the_token_stays_in_sight(reading: Page) -> None:
    reading.locator(".text").focus()
    place = "() => [...document.querySelector('.text').children].indexOf(document.querySelector('.at'))"
    assert reading.evaluate(place) == 0
    assert "Nothing stands before it" in reading.locator(".panel").inner_text()
    for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 155), ("ArrowRight", 155)):
        reading.keyboard.press(key)
        assert reading.evaluate(place) == expected
    hidden = """() => {
      const at = document.querySelector(".at").getBoundingClientRect();
      const panel = document.querySelector(".panel").getBoundingClientRect();
      const covered = at.bottom > panel.top && at.top < panel.bottom && at.right > panel.left && at.left < panel.right;
      return covered || at.top < 0 || at.bottom > innerHeight;
    }"""
    assert not reading.evaluate(hidden)
    reading.keyboard.press("Home")
    before = reading.evaluate(place)
    for _ in range(6):
        reading.keyboard.press("ArrowDown")
        assert reading.evaluate(place) > before
        before = reading.evaluate(place)
        assert not reading.evaluate(hidden)
    reading.keyboard.press("ArrowUp")
    assert reading.evaluate(place) < before


@pytest.mark.parametrize("page", BOTH[1:], indirect=True)
def test_a_tap_shows_the_numbers(reading: Page) -> None:
    reading.locator(".text > span").nth(1).tap()
    assert "␣is" in reading.locator(".panel").inner_text()
