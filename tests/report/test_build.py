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

from ripieno.measures.about import About
from ripieno.measures.evidence import Evidence
from ripieno.measures.table import Analysis, Comparison, Flow, Row, SizePoint
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


def evidence(predictions: list[Predictions], out: int = 0, **known: object) -> Evidence:
    names = tuple(dict.fromkeys(p.name for p in predictions))
    return Evidence(predictions, names[len(names) - out :], **known)  # type: ignore[arg-type]


def page_of(predictions: list[Predictions], out: int = 0, resamples: int = 40, **changes: object) -> tuple[str, Page]:
    names = tuple(dict.fromkeys(p.name for p in predictions))
    analysis = evidence(predictions, out).analyze(resamples=resamples)
    html = build(summary(names[: len(names) - out], names[len(names) - out :], **changes), predictions, analysis)
    return html, Page(html)


@pytest.fixture(scope="module")
def realistic() -> tuple[str, Page]:
    """Three sets, subjects on the last, and all that the base makes of the questions."""
    subjects = ("law", "anatomy", "<b>bold</b>", "virology")
    predictions = [
        replace(p, subjects=tuple(subjects[n % 4] for n in range(250))) if "mmlu" in p.name else p
        for p in run(REALISTIC)
    ]
    rng = np.random.default_rng(0)
    about = {
        p.name: About(
            p.question_ids,
            choice_bytes=np.where(p.mask, rng.integers(3, 30, p.mask.shape), 0),
            prompt_tokens=rng.integers(20, 60, 250),
            prompt_nll=rng.normal(3.0, 0.4, 250),
            hidden=rng.normal(size=(250, 8)),
        )
        for p in predictions
    }
    found = evidence(predictions, 2, about=about, familiar=rng.normal(size=(100, 8)))
    html = build(summary(NAMES[:1], NAMES[1:]), predictions, found.analyze(resamples=100))
    return html, Page(html)


def test_loads_nothing(realistic: tuple[str, Page]) -> None:
    html, page = realistic
    assert "http:" not in html
    assert "https:" not in html
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    assert "@import" not in html
    assert "fetch(" not in html
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
    # Courses (5 a set, and AUROC out of domain), reliability, risks, densities, histograms, sizes, one flow (1 to 2).
    panels = (3 * 5 + 2) + 3 + 3 + 3 * 2 + 2 * 3 + 3 * 3 + 3
    assert html.count("<svg") == html.count('<svg role="img" aria-label="') == panels
    for words in (
        *("What was run", "The numbers", "Paired comparisons", "Over the epochs", "Member 2", "Mean member"),
        *("Which answers to hand over?", "How many members does it take?", "Which questions it learned and forgot"),
        *("Told apart from commonsense_qa/validation", "Base's perplexity of the prompt", "K-matched"),
        *("Do a choice's length or place draw answers?", "Length: it answers the shortest choice in"),
        *("Debiased calibration error", "Agreement of two members", "mean of logits"),
    ):
        assert words in page.text, words
    for name in NAMES:
        assert name in page.text
    assert "members: 3" in page.text
    assert "Accuracy by epoch" not in page.text
    assert 'aria-label="accuracy by epoch. Ensemble: epoch 0 ' in html


def test_first_screen_answers_the_three_questions(realistic: tuple[str, Page]) -> None:
    html, _ = realistic
    screen = Page(html[html.index('<section aria-label="In plain words"') : html.index('<nav class="contents"')]).text
    for question in (
        "How right is it? In domain: ",
        "Can I believe its confidence? In domain: ",
        "When should a person decide instead? Below ",
        "Does it notice what it was not trained for? Yes",
    ):
        assert question in screen, question
    shown = re.sub(r"<details>.*?</details>", "", html[: html.index('<nav class="contents"')], flags=re.DOTALL)
    assert len(Page(shown[shown.index("<section") :]).text.split()) < 550


def test_subjects_stand_in_a_table_that_sorts(realistic: tuple[str, Page]) -> None:
    html, page = realistic
    assert page.tags.count("script") == 1
    table = html[html.index('<table class="sortable">') :]
    assert re.findall(r'<th scope="row" data-key="([^"]*)"', table[: table.index("</table>")]).count("virology") == 1
    assert "<b>bold" not in html
    assert "<b>bold</b>" in page.text
    accuracies = [float(x) for x in re.findall(r'<td data-key="(0\.\d+)">\d+%', table)]
    assert len(accuracies) == 4
    assert accuracies == sorted(accuracies)


def test_colours_are_the_pages_own(realistic: tuple[str, Page]) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", realistic[0], re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", figures)
    assert "var(--ensemble)" in figures


@pytest.fixture(scope="module")
def alone() -> tuple[list[Predictions], str, Page]:
    """One set, whose members hardly disagree."""
    predictions = run({"a/test": {"spread": 0.1}}, n=60)
    return predictions, *page_of(predictions)


def test_axis_numbers_are_not_cut(alone: tuple[list[Predictions], str, Page]) -> None:
    """Coordinates are shortened to save room; a tick label of 0.025 must not become 0.02."""
    labels = [float(x) for x in re.findall(r">(0\.\d+)</text>", alone[1])]
    assert any(round(x, 2) != x for x in labels)


def test_same_input_same_page(alone: tuple[list[Predictions], str, Page]) -> None:
    predictions, html, _ = alone
    assert page_of(predictions)[0] == html


def test_no_out_of_domain(alone: tuple[list[Predictions], str, Page]) -> None:
    _, _, page = alone
    assert "Out of domain: no set." in page.text
    assert "Not tested" in page.text


def test_one_member() -> None:
    html, page = page_of(run({"a/test": {}, "b/test": {}}, members=1, n=60), out=1, members=1)
    assert "it takes at least two members" in page.text
    assert "With one member there is no second opinion" in page.text
    assert "less mean member" not in page.text
    assert "disagreement" not in page.text.split("The numbers")[0].split("Does it notice")[1].split("More")[0]
    # Courses without mutual information, reliability, risks, histograms; no density, no sizes.
    assert html.count("<svg") == (2 * 4 + 1) + 2 + 2 + 2 + 2
    assert "nan" not in page.text


def test_sets_without_answers() -> None:
    _, page = page_of(run({"a/test": {}, "a/dev": {"labelled": False}, "b/test": {"labelled": False}}, n=60), out=1)
    assert "b: the right answers are not known here" in page.text
    assert "no question has a known answer" in page.text
    # Two splits of one data set are told apart by their whole names.
    assert "a/test: " in page.text
    assert "a/dev: the right answers are not known here" in page.text


def test_no_answer_known() -> None:
    _, page = page_of(run({"a/test": {"labelled": False}}, n=60))
    assert "Unknown: no answers to compare with." in page.text


def test_choices_differ() -> None:
    _, page = page_of(run({"a/test": {"sizes": (5,)}, "b/test": {"sizes": (2, 3, 5)}}, n=80), out=1)
    assert "Measured with as many choices in both sets" in page.text
    assert "until every question has 2." in page.text


def test_single_epoch_and_few_questions() -> None:
    html, page = page_of(run({"a/test": {}}, epochs=1, n=3))
    assert "nan" not in page.text
    assert html.count("<svg") >= 5 + 1 + 2 + 3


def test_certain_and_wrong() -> None:
    """Probabilities of exactly 0 and 1: losses are infinite, and members agree wholly."""
    predictions = run({"a/test": {}}, n=40)
    with np.errstate(divide="ignore"):
        sure = [replace(p, log_probs=np.log(np.eye(5)[np.zeros((len(p.members), 40), int)])) for p in predictions]
    _, page = page_of(sure)
    assert "nan" not in page.text
    assert "inf " not in page.text


@pytest.mark.parametrize("signal", [0.0, 12.0])
def test_all_right_and_nothing_known(signal: float) -> None:
    _, page = page_of(run({"a/test": {"signal": signal, "spread": 0.1}}, n=40))
    assert "nan" not in page.text


def test_set_not_evaluated_at_the_last_epoch_is_named() -> None:
    predictions = [p for p in run({"a/test": {}, "b/test": {}}, n=60) if (p.name, p.epoch) != ("b/test", 2)]
    _, page = page_of(predictions, out=1)
    assert "b/test was not evaluated at the last epoch." in page.text


def test_hostile_text_shows_as_text() -> None:
    hostile = "<script>alert('x')</script>\"&{{ 7 * 7 }}"
    html, page = page_of(
        [replace(p, subjects=(hostile, "law") * 30) for p in run({f"{hostile}/test": {}, "b/test": {}}, n=60)],
        out=1,
        name=hostile,
        base=hostile,
        notes=(hostile,),
        dropped=(hostile,),
        config_yaml=hostile,
        versions={hostile: hostile},
    )
    assert "<script>alert" not in html
    assert page.tags.count("script") == 1
    assert hostile in page.text
    assert " 49" not in page.text


def test_ten_thousand_questions_in_time_and_size() -> None:
    predictions = run(REALISTIC, n=10_000)
    rows = evidence(run(REALISTIC, n=60), 2).analyze(resamples=20)
    start = time.perf_counter()
    html = build(summary(NAMES[:1], NAMES[1:]), predictions, rows)
    assert time.perf_counter() - start < 20  # 4 s alone; the machine may be busy
    assert len(html.encode()) < 1_500_000


def test_tables_hold_every_row_and_no_formula() -> None:
    row = Row("=HYPERLINK(1)", "@test", "ensemble", 1, "ensemble", "nll", -1.5, 10, -2.0, None, reason="+x")
    comparison = Comparison("-a", "test", "nll", "ensemble", "uniform guess", -0.25, -0.5, -0.1, 10, 0.01, 0.02)
    point = SizePoint("a", "test", "=x", 1, "nll", 2, 3, 1.0, 0.9, 1.1, -0.5, -0.6, -0.4, 10)
    flow = Flow("a", "test", "@m", 0, 1, "right", "wrong", 4, 10)
    tables = write_tables(Analysis([row], [comparison], [point], [flow]))
    assert set(tables) == {"measures.csv", "comparisons.csv", "ensemble_sizes.csv", "flows.csv"}
    (cells,) = csv.DictReader(io.StringIO(tables["measures.csv"]))
    assert (cells["dataset"], cells["split"], cells["reason"]) == ("'=HYPERLINK(1)", "'@test", "'+x")
    assert (cells["value"], cells["low"], cells["high"]) == ("-1.5", "-2.0", "")
    (cells,) = csv.DictReader(io.StringIO(tables["comparisons.csv"]))
    assert (cells["dataset"], cells["difference"], cells["p_holm"]) == ("'-a", "-0.25", "0.02")
    (cells,) = csv.DictReader(io.StringIO(tables["ensemble_sizes.csv"]))
    assert (cells["method"], cells["members"], cells["gain"]) == ("'=x", "2", "-0.5")
    (cells,) = csv.DictReader(io.StringIO(tables["flows.csv"]))
    assert (cells["method"], cells["count"], cells["boundary"]) == ("'@m", "4", "")
