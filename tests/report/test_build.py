from __future__ import annotations

import csv
import io
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic import REALISTIC, run, summary

from ripieno.measures.analysis import Comparison, Row, analyze, compare_with_references
from ripieno.predictions import Predictions
from ripieno.report.build import build, write_tables

NAMES = tuple(REALISTIC)
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page as a browser does, as far as the tests ask: balanced tags, ids, references, visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.references.append(value or "")
            if name == "aria-label" and tag == "svg":
                assert value
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self._open):
            self.text += data


def page_of(predictions: list[Predictions], out: int = 0, **changes: object) -> tuple[str, Page]:
    names = tuple(dict.fromkeys(p.name for p in predictions))
    inside = names[: len(names) - out]
    html = build(
        summary(inside, names[len(inside) :], **changes),
        predictions,
        analyze(predictions, resamples=100),
        compare_with_references(predictions, resamples=100),
    )
    return html, Page(html)


@pytest.fixture(scope="module")
def realistic() -> tuple[str, Page]:
    return page_of(run(REALISTIC), out=2)


def test_loads_nothing_and_runs_nothing(realistic: tuple[str, Page]) -> None:
    html, page = realistic
    assert "http" not in html
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert '<html lang="en">' in html


def test_ids_are_unique_and_references_resolve(realistic: tuple[str, Page]) -> None:
    html, page = realistic
    assert len(page.ids) == len(set(page.ids))
    referred = {r[1:] for r in page.references} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert referred
    assert referred <= set(page.ids)


def test_holds_every_part(realistic: tuple[str, Page]) -> None:
    html, page = realistic
    assert html.count("<svg") == html.count('<svg role="img" aria-label="') == 3 * 3 + 3 + 3 * 2
    for words in ("What was run", "The numbers", "Paired comparisons", "Over the epochs", "Member 2", "Mean member"):
        assert words in page.text
    for name in NAMES:
        assert name in page.text
    assert "members: 3" in page.text
    assert "Accuracy by epoch" not in page.text
    assert 'aria-label="accuracy by epoch. Ensemble: epoch 0 ' in html


def test_colours_are_the_pages_own(realistic: tuple[str, Page]) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", realistic[0], re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", figures)
    assert "var(--ensemble)" in figures


def test_axis_numbers_are_not_cut() -> None:
    """Coordinates are shortened to save room; a tick label of 0.025 must not become 0.02."""
    html, _ = page_of(run({"a/test": {"spread": 0.1}}))
    labels = [float(x) for x in re.findall(r">(0\.\d+)</text>", html)]
    assert any(round(x, 2) != x for x in labels)


def test_same_input_same_page() -> None:
    predictions = run({"a/test": {}})
    assert page_of(predictions)[0] == page_of(predictions)[0]


def test_one_member() -> None:
    html, page = page_of(run({"a/test": {}, "b/test": {}}, members=1), out=1, members=1)
    assert "it takes at least two members" in page.text
    assert "this run has one" in page.text
    assert "less mean member" not in page.text
    assert html.count("<svg") == 2 * 3 + 2


def test_no_out_of_domain() -> None:
    _, page = page_of(run({"a/test": {}}))
    assert "No out-of-domain questions were evaluated" in page.text
    assert "Not tested" in page.text


def test_unlabelled_set() -> None:
    _, page = page_of(run({"a/test": {}, "b/test": {"labelled": False}}), out=1)
    assert "b/test: the right answers are not known here" in page.text
    assert "no question has a known answer" in page.text


def test_all_unlabelled() -> None:
    _, page = page_of(run({"a/test": {"labelled": False}}))
    assert "Unknown: no answers to compare with." in page.text


@pytest.mark.parametrize("sizes", [(4,), (2, 3, 5)])
def test_choices_differ(sizes: tuple[int, ...]) -> None:
    _, page = page_of(run({"a/test": {"sizes": (5,)}, "b/test": {"sizes": sizes}}), out=1)
    assert "The number of choices alone moves both" in page.text
    assert "entropy, as a share of ln K" in page.text


def test_single_epoch_and_few_questions() -> None:
    html, _ = page_of(run({"a/test": {}}, epochs=1, n=3))
    assert html.count("<svg") == 3 + 1 + 2


def test_certain_and_wrong() -> None:
    """Probabilities of exactly 0 and 1: losses are infinite, and members agree wholly."""
    predictions = run({"a/test": {}}, n=40)
    with np.errstate(divide="ignore"):
        sure = [replace(p, log_probs=np.log(np.eye(5)[np.zeros((len(p.members), 40), int)])) for p in predictions]
    _, page = page_of(sure)
    assert "nan" not in page.text
    assert "inf " not in page.text


def test_set_not_evaluated_at_the_last_epoch_is_named() -> None:
    predictions = [p for p in run({"a/test": {}, "b/test": {}}) if (p.name, p.epoch) != ("b/test", 2)]
    _, page = page_of(predictions, out=1)
    assert "b/test was not evaluated at the last epoch." in page.text


def test_hostile_text_shows_as_text() -> None:
    hostile = "<script>alert('x')</script>\"&{{ 7 * 7 }}"
    html, page = page_of(
        run({f"{hostile}/test": {}}),
        name=hostile,
        base=hostile,
        notes=(hostile,),
        dropped=(hostile,),
        config_yaml=hostile,
        versions={hostile: hostile},
    )
    assert "<script" not in html
    assert "script" not in page.tags
    assert hostile in page.text
    assert " 49" not in page.text


def test_ten_thousand_questions_in_time_and_size() -> None:
    predictions = run(REALISTIC, n=10_000)
    rows = analyze(predictions, resamples=20)
    start = time.perf_counter()
    html = build(summary(NAMES[:1], NAMES[1:]), predictions, rows, [])
    assert time.perf_counter() - start < 20  # 2 s alone; the machine may be busy
    assert len(html.encode()) < 2_000_000


def test_tables_hold_every_row_and_no_formula() -> None:
    row = Row("=HYPERLINK(1)", "@test", "ensemble", 1, "ensemble", "nll", -1.5, 10, -2.0, None, reason="+x")
    comparison = Comparison("-a", "test", "nll", "ensemble", "uniform guess", -0.25, -0.5, -0.1, 10)
    tables = write_tables([row], [comparison])
    assert set(tables) == {"measures.csv", "comparisons.csv"}
    (cells,) = csv.DictReader(io.StringIO(tables["measures.csv"]))
    assert (cells["dataset"], cells["split"], cells["reason"]) == ("'=HYPERLINK(1)", "'@test", "'+x")
    assert (cells["value"], cells["low"], cells["high"]) == ("-1.5", "-2.0", "")
    (cells,) = csv.DictReader(io.StringIO(tables["comparisons.csv"]))
    assert (cells["dataset"], cells["difference"]) == ("'-a", "-0.25")
