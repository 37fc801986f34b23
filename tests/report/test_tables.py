from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import answers

from ripieno.measures.table import MEASURES, Analysis, Comparison, Row
from ripieno.report import names, tables
from ripieno.report.results import EvaluatedSet, Results
from ripieno.report.words import ordinal

HOME = EvaluatedSet("home/test", False, 4, (2,), 0.693, 0.5, None)


def row(measure: str, value: float | None, low: float | None = None, high: float | None = None, **more: object) -> Row:
    return Row("home", "test", "ensemble", 1, "ensemble", measure, value, 4, low, high, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("difference", "p", "measure", "second", "said"),
    [
        ((-0.2, -0.3, -0.1), 0.01, "nll", "base", "−0.20 better"),
        ((0.2, 0.1, 0.3), 0.01, "nll", "base", "+0.20 worse"),
        ((0.2, 0.1, 0.3), 0.01, "accuracy", "base", "+0.20 better"),
        ((0.2, 0.1, 0.3), 0.01, "error_auroc_confidence", "base", "+0.20 better"),
        ((0.2, 0.1, 0.3), 0.01, "aurc_confidence", "base", "+0.20 worse"),
        ((0.2, 0.1, 0.3), 0.06, "accuracy", "base", "+0.20 better?"),
        ((0.2, -0.1, 0.5), 0.50, "accuracy", "base", "+0.20 not told apart"),
        ((-0.2, -0.3, -0.1), 0.01, "nll", "mean member", "−0.20 (convexity)"),
        ((0.2, 0.1, 0.3), 0.01, "accuracy", "mean member", "+0.20 better"),
    ],
)
def test_a_difference_is_called_what_its_interval_and_its_p_allow(
    difference: tuple[float, float, float], p: float, measure: str, second: str, said: str
) -> None:
    c = Comparison("home", "test", measure, "ensemble", second, *difference, 4, p / 10, p)
    table = tables.compared([c], HOME, (measure,))
    ((label, (cell,)),) = table["lines"]
    assert label == f"ensemble less {second}"
    assert cell.value == said


def test_every_measure_of_the_contract_has_a_name() -> None:
    for measure in MEASURES:
        if not measure.startswith(("temperature", "decision_")):
            assert names.label(measure) != measure


def test_cells() -> None:
    assert tables.cell(row("nll", 1.234, 1.1, 1.3), "nll") == tables.Cell("1.23", "1.10 to 1.30")
    assert tables.cell(row("prr", -0.5), "prr") == tables.Cell("−0.50")
    assert tables.cell(row("nll", None, reason="infinite"), "nll") == tables.Cell("–", reason="infinite")
    assert tables.cell(None, "nll") == tables.Cell("–")
    assert tables.cell(row("mutual_information", 0.0123), "mutual_information").value == "0.012"


def test_subjects_by_hand() -> None:
    """Four questions of two choices, one member: right with 0.8, wrong with 0.8, right with 0.6 and unknown."""
    probs = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.5, 0.5]])
    p = replace(
        answers("home/test", seed=0, n=4, sizes=(2,), members=1),
        log_probs=np.log(probs)[None],
        targets=np.array([0, 1, 0, -1]),
        subjects=("law", "law", "college_physics", None),
    )
    law, physics, none = tables.subjects(p)
    assert (law["name"], law["n"], law["few"], law["accuracy"]) == ("law", 2, True, 0.5)
    assert law["nll"] == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)
    assert law["mutual_information"] == 0.0
    assert (physics["name"], physics["accuracy"]) == ("college physics", 1.0)
    assert physics["entropy"] == pytest.approx(-(0.6 * np.log(0.6) + 0.4 * np.log(0.4)))
    assert (none["name"], none["accuracy"], none["nll"], none["interval"]) == ("(no subject)", None, None, "")
    assert tables.subjects(replace(p, subjects=("law",) * 4)) == []
    assert tables.subjects(replace(p, subjects=())) == []


def test_checks_of_length_and_order() -> None:
    found = [
        row("shortest_answered", 0.5, 0.4, 0.6),
        row("shortest_right", 0.3),
        row("position_0_answered", 0.7, 0.6, 0.8),
        row("position_0_right", 0.5),
        row("position_1_answered", 0.3, 0.2, 0.4),
        row("position_1_right", 0.5),
    ]
    length, order = tables.checks(Results(Analysis(found), "ensemble"), HOME)
    assert length == (
        "Length: it answers the shortest choice in 50% (40% to 60%) of the questions, and that is right in 30%: it "
        "favours short choices."
    )
    assert "1st 70% (50%)*, 2nd 30% (50%)*." in order
    assert "by chance in 10% of sets." in order
    assert order.endswith("More often than right: the 1st.")
    assert tables.checks(Results(Analysis(found[:1]), "ensemble"), HOME) == []


def test_places_are_counted_as_they_are_spoken() -> None:
    spoken = {1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 22: "22nd"}
    assert {n: ordinal(n) for n in spoken} == spoken
    assert [ordinal(n) for n in (100, 101, 111, 1003)] == ["100th", "101st", "111th", "1003rd"]


def test_recall_of_the_users_labels_stands_among_the_measures() -> None:
    found = [row("accuracy", 0.5), row("recall_<yes>", 0.25)]
    lines = tables.every_measure(Results(Analysis(found), "ensemble"), [HOME])
    assert [(line["name"], line["cells"][0].value) for line in lines] == [
        ("Accuracy", "0.50"),
        ("Recall of “<yes>”", "0.25"),
    ]
