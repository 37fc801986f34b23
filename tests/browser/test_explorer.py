"""The report's question explorer, as a reader meets it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from asked import HOSTILE, asked, released
from playwright.sync_api import Page
from synthetic import answers, summary

from ripieno.data.question import Question
from ripieno.measures import accuracy, uncertainty
from ripieno.measures.analysis import analyze
from ripieno.measures.table import Analysis
from ripieno.predictions import Predictions
from ripieno.report import explorer
from ripieno.report.build import build

NARROW = {"viewport": {"width": 390, "height": 844}}
HOME, AWAY, OPEN = "home/test", "away:part/test", "open/test"
ROW = "#explorer-table tbody tr"
BODY = "#explorer-body"


@dataclass(frozen=True)
class Shown:
    """A page on the disk, and what it was made from."""

    url: str
    html: str
    predictions: list[Predictions]
    questions: dict[str, list[Question]]

    def each(self, measure: str) -> np.ndarray:
        """Return a measure of every question, the sets one after another; of what is not known, NaN."""
        return np.concatenate([_each(p, measure) for p in self.predictions])


def _each(p: Predictions, measure: str) -> np.ndarray:
    pooled = uncertainty.pool(p.probs)
    known = np.where(p.labelled, p.targets, 0)
    values = {
        "correct": lambda: np.where(p.labelled, accuracy.correct(pooled, known), np.nan),
        "confidence": lambda: uncertainty.confidence(pooled),
        "predictive_entropy": lambda: uncertainty.entropy(pooled),
        "mutual_information": lambda: uncertainty.mutual_information(p.probs),
        "disagreement": lambda: uncertainty.disagreement(p.probs),
        "margin": lambda: uncertainty.margin(pooled),
        "nll": lambda: np.where(p.labelled, accuracy.nll(np.log(pooled + (pooled == 0)), known), np.nan),
        "choices": lambda: p.mask.sum(axis=1).astype(float),
    }
    return values[measure]()


def write(folder: Path, predictions: list[Predictions], questions: dict[str, list[Question]], out: int) -> Shown:
    names = [p.name for p in predictions]
    inside, outside = tuple(names[: len(names) - out]), tuple(names[len(names) - out :])
    explored = explorer.data(predictions, questions, outside)
    html = build(summary(inside, outside), predictions, Analysis(analyze(predictions, resamples=20)), explored)
    (folder / "index.html").write_text(html, encoding="utf-8")
    return Shown((folder / "index.html").as_uri(), html, predictions, questions)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Three sets: in domain, one whose right answers are not known, and another out of domain."""
    predictions = [
        answers(HOME, seed=1, n=90, sizes=(2, 3, 5), signal=1.2),
        answers(OPEN, seed=3, n=20, sizes=(3,), labelled=False),
        answers(AWAY, seed=2, n=40, sizes=(4,), signal=0.5),
    ]
    predictions[2] = replace(predictions[2], subjects=tuple(("abstract_algebra", "law")[i % 2] for i in range(40)))
    questions = {p.name: asked(p) for p in predictions}
    return write(tmp_path_factory.mktemp("report"), predictions, questions, out=2)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, released: Path) -> Shown:
    """10,000 released questions of two sets, 10 members."""
    sets = [_released(released, "commonsense_qa/train", 2000), _released(released, "mmlu:all/test", 8000)]
    predictions = [p for p, _ in sets]
    return write(tmp_path_factory.mktemp("large"), predictions, {p.name: q for p, q in sets}, out=1)


def _released(folder: Path, name: str, n: int) -> tuple[Predictions, list[Question]]:
    return released(folder, name, n, members=10)


def start(page: Page, shown: Shown) -> None:
    page.goto(shown.url)
    page.wait_for_selector("#explorer[aria-busy=false]")


def count(page: Page) -> int:
    """Return how many questions match, as the page says."""
    said = page.inner_text("#explorer-count")
    return 0 if said.startswith("No question") else int(said.split(" of ")[0].replace(",", ""))


def column(page: Page, measure: str) -> list[str]:
    """Return a column of the table as shown, page after page."""
    place = 1 + list(explorer.MEASURES).index(measure)
    cells: list[str] = []
    while True:
        cells += page.eval_on_selector_all(ROW, f"rows => rows.map(row => row.cells[{place}].textContent)")
        if page.is_disabled("#explorer-forth"):
            return cells
        page.click("#explorer-forth")


def test_page_is_quiet_and_loads_nothing(page: Page, shown: Shown) -> None:
    """What is said in the console, or asked of a network, fails in the fixture."""
    start(page, shown)
    assert count(page) == 150
    assert page.locator(ROW).count() == 50
    assert page.locator("script[src], link, img, iframe").count() == 0
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0


def test_sorts_by_each_measure(page: Page, shown: Shown) -> None:
    """Both ways, by the column's button; what is not known stands last. The numbers are numpy's."""
    start(page, shown)
    page.click("[data-sort=nll]")  # the page starts with its highest
    for measure in explorer.MEASURES:
        button = page.locator(f"#explorer-table thead button[data-sort={measure}]")
        values = shown.each(measure).astype(np.float32).astype(float)
        known = np.sort(values[~np.isnan(values)])
        unknown = [text(measure, np.nan)] * (150 - len(known))
        for way in ("descending", "ascending"):
            button.click()
            header = page.locator(f"#explorer-table th:has(button[data-sort={measure}])")
            assert header.get_attribute("aria-sort") == way
            assert page.locator("#explorer-table th[aria-sort$=ending]").count() == 1
            assert button.evaluate("it => it === document.activeElement")
            ordered = known if way == "ascending" else known[::-1]
            assert column(page, measure) == [text(measure, v) for v in ordered] + unknown


def text(measure: str, value: float) -> str:
    if np.isnan(value):
        return "–"
    if measure == "correct":
        return "✓ right" if value else "✗ wrong"
    return f"{value:.{ {'mutual_information': 3, 'choices': 0}.get(measure, 2) }f}"


def test_select_and_direction_sort_too(page: Page, shown: Shown) -> None:
    start(page, shown)
    page.select_option("#explorer-sort", "margin")
    page.click("#explorer-direction")
    assert page.get_attribute("th:has([data-sort=margin])", "aria-sort") == "ascending"
    assert page.inner_text("#explorer-count") == "150 of 150 questions, by Margin, lowest first."


def test_filters_count_as_numpy_does(page: Page, shown: Shown) -> None:
    start(page, shown)
    correct = shown.each("correct")
    name = np.repeat([p.name for p in shown.predictions], [len(p.question_ids) for p in shown.predictions])
    chosen = {"all": name != "", "in": name == HOME, "out": name != HOME, "0": name == HOME, "1": name == OPEN}
    for where, inside in (*chosen.items(), ("2", name == AWAY)):
        page.select_option("#explorer-set", where)
        for answered, wanted in (("right", correct == 1), ("wrong", correct == 0), ("unknown", np.isnan(correct))):
            page.select_option("#explorer-answered", answered)
            assert count(page) == (inside & wanted).sum(), (where, answered)
    page.click("#explorer-reset")
    assert count(page) == 150


def test_filters_by_subject(page: Page, shown: Shown) -> None:
    start(page, shown)
    page.select_option("#explorer-subject", label="abstract algebra")
    assert count(page) == 20
    assert page.locator(ROW).first.inner_text().count("abstract algebra") == 1
    page.select_option("#explorer-set", label=HOME)
    assert count(page) == 90  # a set without subjects has no such filter
    assert page.is_hidden("#explorer-subject")


SEARCHES = (
    ("number 37 of", ["number", "37", "of"]),
    ("HOME  37 Number", ["home", "37", "number"]),
    ('"number 7 of" home', ["number 7 of", "home"]),
    ("abstract_algebra", ["abstract_algebra"]),
    ("<script>alert(1)", ["<script>alert(1)"]),
    ("שלום", ["שלום"]),
    ("q89", ["q89"]),
    ("nowhere to be found", ["nowhere"]),
)


def test_search_finds(page: Page, shown: Shown) -> None:
    """All words, in any case, and phrases, in the question, its choices, passage, subject or id."""
    start(page, shown)
    texts = [
        "\n".join((q.question, *q.choices, q.context or "", subject or "", q.id)).casefold()
        for p in shown.predictions
        for q, subject in zip(shown.questions[p.name], p.subjects or [None] * len(p.question_ids), strict=True)
    ]
    for words, pieces in SEARCHES:
        page.fill("#explorer-search", words)
        assert count(page) == sum(all(piece in t for piece in pieces) for t in texts), words
    assert page.inner_text("#explorer-count").startswith("No question matches")
    assert page.is_hidden("#explorer-table")


def test_opening_shows_every_members_numbers(page: Page, shown: Shown) -> None:
    start(page, shown)
    page.select_option("#explorer-set", label=HOME)
    page.fill("#explorer-search", '"number 61 of"')
    page.click(f"{ROW} button")
    p = shown.predictions[0]
    question, size = shown.questions[HOME][61], int(p.mask[61].sum())
    pooled = p.probs.mean(axis=0)
    for row, probs in enumerate((pooled[61], *p.probs[:, 61])):
        cells = page.locator(f"{BODY} .members tbody tr").nth(row)
        assert cells.locator("td").all_inner_texts() == [f"{v:.3f}" for v in probs[:size]]
        assert cells.locator("strong").inner_text() == f"{probs.max():.3f}"
    assert page.locator(f"{BODY} .members tbody th").all_inner_texts() == [
        "Ensemble",
        "Member 0",
        "Member 1",
        "Member 2",
    ]
    assert page.locator(f"{BODY} .choices bdi").all_inner_texts() == list(question.choices)
    assert page.inner_text(f"{BODY} blockquote") == question.context
    right, answer = int(p.targets[61]), int(pooled[61].argmax())
    tags = page.locator(f"{BODY} .choices li").all_inner_texts()
    assert [k for k, tag in enumerate(tags) if "✓ right choice" in tag] == [right]
    assert [k for k, tag in enumerate(tags) if "● its answer" in tag] == [answer]
    said = page.inner_text(f"{BODY} p strong")
    assert said.startswith(("Right" if right == answer else "Wrong") + f": it answered {'ABCDE'[answer]}, at ")
    # A mark for each member and choice, as far along as its probability.
    at = page.eval_on_selector_all(f"{BODY} .lanes i", "marks => marks.map(mark => parseFloat(mark.style.left))")
    np.testing.assert_allclose(np.reshape(at, (size, 3)).T, 100 * p.probs[:, 61, :size], atol=0.05 + 1e-9)


def test_words_for_votes(page: Page, shown: Shown) -> None:
    """Who prefers what, for a question on which members differ and one on which they do not."""
    p = shown.predictions[0]
    votes = p.probs.argmax(axis=2)
    unlike = uncertainty.disagreement(p.probs)
    torn = next(n for n in range(10, 90) if np.isclose(unlike[n], 1 / 3))
    agreed = next(n for n in range(10, 90) if unlike[n] == 0)
    start(page, shown)
    page.select_option("#explorer-set", label=HOME)
    page.fill("#explorer-search", f'"number {torn} of"')
    page.click(f"{ROW} button")
    (mode, _), (other, _) = sorted(((k, (votes[:, torn] == k).sum()) for k in set(votes[:, torn])), key=lambda x: -x[1])
    assert f"Two of three members prefer {'ABCDE'[mode]}, one prefers {'ABCDE'[other]}." in page.inner_text(BODY)
    page.keyboard.press("Escape")
    page.fill("#explorer-search", f'"number {agreed} of"')
    page.click(f"{ROW} button")
    assert f"All three members prefer {'ABCDE'[votes[0, agreed]]}." in page.inner_text(BODY)


def test_keyboard_opens_steps_and_closes(page: Page, shown: Shown) -> None:
    start(page, shown)
    page.focus(f"{ROW}:nth-child(2) button")
    page.keyboard.press("Enter")
    assert page.is_visible("#explorer-dialog")
    assert page.evaluate("document.activeElement.id") == "explorer-question"
    assert page.inner_text("#explorer-place") == "2 of 150"
    page.keyboard.press("Escape")
    assert page.is_hidden("#explorer-dialog")
    assert page.evaluate("document.activeElement.dataset.place") == "1"
    page.keyboard.press("Enter")
    page.focus("#explorer-next")
    page.keyboard.press("Enter")
    assert page.inner_text("#explorer-place") == "3 of 150"
    page.focus("#explorer-close")
    page.keyboard.press("Enter")
    assert page.is_hidden("#explorer-dialog")
    assert page.evaluate("document.activeElement.dataset.place") == "2"  # the one read last


def test_controls_are_reached_by_tab_and_have_names(page: Page, shown: Shown) -> None:
    start(page, shown)
    page.focus("#explorer-search")
    reached = []
    for _ in range(8):
        reached.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    names = ("search", "set", "subject", "answered", "sort", "direction", "confidence", "reset")
    assert reached == [f"explorer-{name}" for name in names]
    for role, name in (("searchbox", "Search"), ("combobox", "Data set"), ("slider", "Let it answer alone")):
        assert page.get_by_role(role, name=re.compile(name)).count() == 1  # type: ignore[arg-type]
    assert page.get_attribute("#explorer-count", "role") == "status"
    assert page.get_by_role("columnheader").count() >= 9


def test_next_page_and_back(page: Page, shown: Shown) -> None:
    start(page, shown)
    seen = set()
    for _ in range(3):
        seen |= set(page.eval_on_selector_all(ROW, "rows => rows.map(row => row.dataset.place)"))
        if not page.is_disabled("#explorer-forth"):
            page.click("#explorer-forth")
    assert len(seen) == 150
    assert page.inner_text("#explorer-page") == "page 3 of 3"
    page.click("#explorer-back")
    assert page.inner_text("#explorer-page") == "page 2 of 3"


def test_hand_over_counts_as_numpy_does(page: Page, shown: Shown) -> None:
    start(page, shown)
    p = shown.predictions[0]
    confidence, right = (_each(p, measure) for measure in ("confidence", "correct"))
    for threshold in (0, 45, 70, 100):
        page.fill("#explorer-confidence", str(threshold))
        kept = confidence.astype(np.float32) >= np.float32(threshold / 100)
        said = page.inner_text("#explorer-handed")
        assert said.startswith(f"Answers {kept.sum()} of 90 questions in domain")
        if kept.any():
            assert f"{kept.sum()} of 90 questions in domain, {100 * right[kept].mean():.0f}% right (" in said
        assert ("Hands over none" in said) if kept.all() else (f"Hands over {(~kept).sum()}" in said)
        assert f"Answering all: {100 * right.mean():.0f}% right" in said
    page.select_option("#explorer-set", label=OPEN)
    assert page.inner_text("#explorer-handed") == "No questions shown have a known answer."


def test_hostile_text_shows_as_written(page: Page, shown: Shown) -> None:
    """As a question, as a choice and in the passage; a dialog of its script would fail the test."""
    start(page, shown)
    page.select_option("#explorer-set", label=HOME)
    for i, hostile in enumerate(HOSTILE):
        page.fill("#explorer-search", hostile)
        titles = page.locator(f"{ROW} button")
        place = titles.evaluate_all("them => them.map(it => it.textContent)").index(hostile)
        titles.nth(place).click()
        assert page.locator("#explorer-question").evaluate("it => it.textContent") == hostile
        assert hostile in page.locator(f"{BODY} .choices bdi").evaluate_all("them => them.map(it => it.textContent)")
        passages = page.locator(f"{BODY} blockquote").evaluate_all("them => them.map(it => it.textContent)")
        assert passages == ([shown.questions[HOME][i].context] if i % 2 else [])
        assert page.locator(f"{BODY} :is(script, img, a, b)").count() == 0
        assert hostile not in shown.html
        page.keyboard.press("Escape")


def test_ten_thousand_questions(page: Page, large: Shown) -> None:
    """Small enough to send, there at once, and quick; alone on two cores: ready in 0.6 s, 25 ms a sort or a letter."""
    assert len(large.html.encode()) < 5_000_000
    begun = time.perf_counter()
    start(page, large)
    assert time.perf_counter() - begun < 3
    assert count(page) == 10_000
    timed = """([id, values, event]) => values.map(value => {
      const control = document.getElementById(id);
      control.value = value;
      const begun = performance.now();
      control.dispatchEvent(new Event(event));
      document.body.getBoundingClientRect();
      return performance.now() - begun;
    })"""
    sorts = page.evaluate(timed, ["explorer-sort", list(explorer.MEASURES), "change"])
    letters = page.evaluate(timed, ["explorer-search", ["w", "wh", "whi", "which", "which of", ""], "input"])
    filters = page.evaluate(timed, ["explorer-answered", ["right", "wrong", "any"], "change"])
    assert max(sorts + letters + filters) < 500, json.dumps([sorts, letters, filters])
    page.select_option("#explorer-sort", "confidence")
    values = large.each("confidence")
    assert page.locator(f"{ROW} td").nth(1).inner_text() == f"{values.max():.2f}"
    page.click(f"{ROW} button")
    assert page.locator(f"{BODY} .members tbody tr").count() == 11


@pytest.mark.parametrize("page", [NARROW, {**NARROW, "color_scheme": "dark"}], indirect=True, ids=["light", "dark"])
def test_narrow_page_does_not_overflow(page: Page, shown: Shown) -> None:
    start(page, shown)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click(f"{ROW} button")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dialog = page.locator("#explorer-dialog").evaluate("it => [it.scrollWidth, it.clientWidth]")
    assert dialog[0] <= dialog[1]


CONTRAST = """selector => [...document.querySelectorAll(selector)].filter(it => it.checkVisibility()).map(it => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = channels(colour).slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  let behind = it;
  while (behind && (channels(getComputedStyle(behind).backgroundColor)[3] ?? 1) < 1) behind = behind.parentElement;
  const [a, b] = [getComputedStyle(it).color, getComputedStyle(behind ?? document.body).backgroundColor].map(light);
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
})"""


@pytest.mark.parametrize("page", [{}, {"color_scheme": "dark"}], indirect=True, ids=["light", "dark"])
def test_text_has_contrast(page: Page, shown: Shown) -> None:
    """WCAG 2's ratio of 4.5 for normal text."""
    start(page, shown)
    page.click(f"{ROW} button")
    ratios = page.evaluate(CONTRAST, "#explorer :is(th, td, p, small, button:enabled, select, label, output, li, bdi)")
    assert len(ratios) > 400
    assert min(ratios) >= 4.5
    tags = page.evaluate(CONTRAST, "#explorer :is(.tag, .percent, strong, .right, .wrong, h2, h3)")
    assert len(tags) > 20
    assert min(tags) >= 4.5


def test_print_holds_a_heading_and_a_note(page: Page, shown: Shown) -> None:
    start(page, shown)
    page.emulate_media(media="print")
    assert page.locator("#explorer > :visible").evaluate_all("them => them.map(it => it.tagName)") == ["H2", "P"]
    assert "open the page in a browser" in page.inner_text("#explorer > .print")


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript_it_says_so(page: Page, shown: Shown) -> None:
    page.goto(shown.url)
    assert "takes JavaScript" in page.inner_text("#explorer noscript")


def test_a_browser_too_old_is_told(page: Page, shown: Shown) -> None:
    page.add_init_script("delete globalThis.DecompressionStream")
    page.goto(shown.url)
    page.wait_for_function("document.getElementById('explorer-message').textContent.includes('cannot be unpacked')")


def test_fewer_members_are_shown_one_by_one(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all would be too large: the page says so, and counts them in the votes all the same."""
    p = answers(HOME, seed=1, n=60, members=5)
    questions = {HOME: asked(p)}
    monkeypatch.setattr(explorer, "DRAWN", (2, 0))
    limit = len(explorer.data([p], questions).payload) - 1
    for name in ("BUDGET", "LIMIT"):
        monkeypatch.setattr(explorer, name, limit)
    start(page, write(tmp_path, [p], questions, out=0))
    assert "2 of 5 members are shown one by one, the first" in page.inner_text("#explorer-left-out")
    torn = next(n for n in range(10, 60) if uncertainty.disagreement(p.probs)[n] > 0.3)
    page.fill("#explorer-search", f'"number {torn} of"')
    page.click(f"{ROW} button")
    rows = page.locator(f"{BODY} .members tbody tr")
    assert rows.locator("th").all_inner_texts() == ["Ensemble", "Member 0", "Member 1"]
    for row, probs in enumerate((p.probs.mean(axis=0)[torn], *p.probs[:2, torn])):
        assert rows.nth(row).locator("td").all_inner_texts() == [f"{v:.3f}" for v in probs]
        assert rows.nth(row).locator("strong").inner_text() == f"{probs.max():.3f}"
    said = page.inner_text(BODY)
    most = max(np.bincount(p.probs[:, torn].argmax(axis=1)))
    assert f"{['Two', 'Three', 'Four'][most - 2]} of five members" in said
    assert "5 members answered; 3 are not listed." in said
    assert "the first two members' own, a line a member" in said
    at = page.eval_on_selector_all(f"{BODY} .lanes i", "marks => marks.map(mark => parseFloat(mark.style.left))")
    np.testing.assert_allclose(np.reshape(at, (5, 2)).T, 100 * p.probs[:2, torn], atol=0.05 + 1e-9)


def test_a_sample_of_too_many_questions(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = answers(HOME, seed=1, n=400, members=3)
    whole = explorer.data([p], {HOME: asked(p)})
    for name in ("BUDGET", "LIMIT"):
        monkeypatch.setattr(explorer, name, len(whole.payload) // 3)
    start(page, write(tmp_path, [p], {HOME: asked(p)}, out=0))
    left = count(page)
    assert 50 < left < 390
    said = page.inner_text("#explorer-left-out")
    assert f"the explorer holds {left} of 400 questions, drawn at random" in said
    assert "no member is shown one by one" in said
    page.click(f"{ROW} button")
    assert page.locator(f"{BODY} .members tbody th").all_inner_texts() == ["Ensemble"]
    assert "each member's own, a line" not in page.inner_text(BODY)
    assert "3 members answered; 3 are not listed." in page.inner_text(BODY)
    assert page.locator(f"{BODY} .lanes").count() == 0


def test_one_member_and_no_texts(page: Page, tmp_path: Path) -> None:
    """Predictions of another program: no question's text; one member, who cannot disagree."""
    shown = write(tmp_path, [answers(HOME, seed=1, n=5, members=1)], {}, out=0)
    start(page, shown)
    assert page.locator("#explorer-table thead th").count() == 1 + len(explorer.MEASURES) - len(explorer.OF_SEVERAL)
    page.click(f"{ROW} button")
    assert "no second opinion" in page.inner_text(BODY)
    assert "its text is not stored" in page.inner_text("#explorer-question")
    assert page.is_hidden("#explorer-subject")
