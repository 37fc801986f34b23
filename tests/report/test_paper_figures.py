"""The paper's figures from made-up runs: what is drawn, of which sets and epochs, in a file that stands alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from synthetic import run

from ripieno.errors import UserError
from ripieno.measures.evidence import Evidence
from ripieno.predictions import Predictions
from ripieno.report.drawing import Panel, sheet

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples/paper_figures.py"
    spec = importlib.util.spec_from_file_location("paper_figures", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(svg: str) -> tuple[list[str], list[str]]:
    """Return the titles of the rows, and the text alternatives of the panels; no two ids are the same."""
    root = ElementTree.fromstring(svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(ids)) == len(ids)
    width, height = (float(root.get(side, "")) for side in ("width", "height"))
    panels = root.findall(f"{SVG}svg")
    for panel in panels:
        x, y, across, down = (float(panel.get(of, "")) for of in ("x", "y", "width", "height"))
        assert x + across <= width
        assert y + down <= height
    titles = [text.text or "" for text in root.findall(f"{SVG}text") if text.get("font-weight")]
    return titles, [panel.get("aria-label", "") for panel in panels]


def test_every_set_has_its_courses_and_its_questions(example: ModuleType) -> None:
    sets = {"away & <far>/test": {"sizes": (4,)}, "home/test": {"sizes": (5,)}}
    evidence = Evidence(run(sets, epochs=2, n=40), out_of_domain=["away & <far>/test"])
    figures = example.paper_figures(evidence)
    assert set(figures) == {"courses.svg", "questions.svg"}
    titles, courses = drawn(figures["courses.svg"])
    assert titles == ["home/test (in domain, n = 40)", "away & <far>/test (out of domain, n = 40)"]
    of_each = ["accuracy", "NLL", "ECE", "entropy (nats)", "mutual information (nats)"]
    assert [alt.split(" by epoch.")[0] for alt in courses] == [*of_each, *of_each, "AUROC against home"]
    assert "epoch 0 " in courses[0]
    assert "3 members at the last epoch" in courses[0]
    titles, questions = drawn(figures["questions.svg"])
    assert len(titles) == 2
    assert len(questions) == 2 * 2 * 2  # sets, epochs, right and wrong
    for right, wrong in zip(questions[::2], questions[1::2], strict=True):
        counts = [int(alt.split()[0]) for alt in (right, wrong)]
        assert sum(counts) == 40
        assert "answered right" in right
        assert "answered wrong" in wrong
    for epoch in (1, 2):
        assert figures["questions.svg"].count(f"epoch {epoch}: ✓") == 2
    assert example.some(range(1, 11)) == [1, 5, 10]


def test_a_single_member_has_courses_alone_and_no_answers_no_figures(example: ModuleType) -> None:
    single = run({"home/test": {}}, members=1, n=30)
    assert set(example.paper_figures(Evidence(single))) == {"courses.svg"}
    bases: list[Predictions] = [p for p in single if p.method == "base"]
    with pytest.raises(UserError, match="nothing was evaluated yet"):
        example.paper_figures(Evidence(bases))


def test_a_sheet_is_as_large_as_what_stands_in_it() -> None:
    panel = Panel('<svg role="img" aria-label="a &amp; b" viewBox="0 0 30 20"></svg>', "a & b", "<label>")
    titles, alts = drawn(sheet([("one & two", [panel, panel]), ("three", [panel])], ["a < b"]))
    assert titles == ["one & two", "three"]
    assert alts == ["a & b"] * 3
