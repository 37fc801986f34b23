"""Two runs on one page: crafted differences, and the sentences that they allow."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from synthetic import run, summary
from test_build import Page

from ripieno.measures.comparisons import compare_runs
from ripieno.measures.evidence import Evidence
from ripieno.measures.table import Analysis, Comparison, Row, SizePoint
from ripieno.report import compare
from ripieno.report.build import build_comparison
from ripieno.report.results import Results

NAMES = ("a", "b")
SET = compare.SharedSet("home/test", "in domain", 250)


def difference(measure: str, x: tuple[float, float, float], p: float = 0.01, dataset: str = "home") -> Comparison:
    return Comparison(dataset, "test", measure, *NAMES, *x, 250, p / 2, p)


def told(comparisons: list[Comparison], results: tuple[Results, Results] | None = None) -> list[compare.Finding]:
    empty = Results(Analysis(), "ensemble")
    return compare.tell(NAMES, results or (empty, empty), [SET], comparisons)


@pytest.mark.parametrize(
    ("comparison", "verdict", "said"),
    [
        (difference("accuracy", (0.07, 0.02, 0.12)), "“a”.", "“a” is right more often, by 7 points (2 to 12), p ="),
        (difference("accuracy", (-0.07, -0.12, -0.02)), "“b”.", "“b” is right more often, by 7 points (2 to 12)"),
        (difference("nll", (-0.2, -0.3, -0.1)), "“a”.", "“a” gives the right answers more probability, by 0.200"),
        (difference("nll", (0.2, -0.1, 0.5), 0.4), "They cannot be told apart.", "apart; they differ by 0.200"),
        # Alone it would count; among so many tests it does not.
        (difference("nll", (0.2, 0.1, 0.3), 0.06), "They cannot be told apart.", "p = 0.060."),
        (difference("error_auroc_confidence", (0.1, 0.05, 0.15)), "“a”.", "“a” tells errors better by its confidence"),
    ],
)  # fmt: skip
def test_which_differences_hold(comparison: Comparison, verdict: str, said: str) -> None:
    (finding,) = told([comparison])
    assert finding.verdict == verdict
    assert finding.points[0].startswith("home/test (in domain, n = 250): ")
    assert said in finding.points[0]


def test_verdict_over_several_sets() -> None:
    (finding,) = told(
        [
            difference("accuracy", (0.07, 0.02, 0.12)),
            difference("accuracy", (-0.07, -0.12, -0.02), dataset="away"),
            difference("accuracy", (0.0, -0.1, 0.1), 1.0, dataset="law"),
        ]
    )
    assert finding.verdict == "“a” on 1 of 3 sets, “b” on 1 of 3 sets; on 1 they cannot be told apart."


def points(values: tuple[float, ...]) -> Results:
    row = Row("home", "test", "ensemble", 2, "ensemble", "accuracy", 0.5, 250)
    sizes = [
        SizePoint(
            "home", "test", "ensemble", 2, "mutual_information", m, 1, x, x - 0.01, x + 0.01, None, None, None, 250
        )
        for m, x in enumerate(values, start=1)
    ]
    return Results(Analysis([row], [], sizes), "ensemble")


def test_mutual_information_is_compared_at_equal_numbers_of_members() -> None:
    """Five members disagree more than three do; with three each, the second's disagree less."""
    results = points((0.0, 0.05, 0.08)), points((0.0, 0.02, 0.03, 0.08, 0.09))
    (finding,) = told([], results)
    assert finding.points == (
        "home/test, with 3 members each: “a” 0.080 (0.070 to 0.090), “b” 0.030 (0.020 to 0.040) nats of mutual "
        "information: “a” more.",
    )
    table = compare.side_by_side(NAMES, results, SET)
    assert [cells[-1].value for _, cells in table["lines"]] == ["0.080", "0.030"]
    assert told([], (points((0.0, 0.05)), points((0.0,)))) == []


def test_configs_differ_where_their_values_do() -> None:
    first = "name: a\ntraining: {members: 3, epochs: 2}\ndata: {train: [x, y]}\n"
    second = "name: a\ntraining: {members: 5, epochs: 2, bagging: true}\ndata: {train: [x]}\n"
    assert compare.config_differences(first, second) == [
        ("training.members", "3", "5"),
        ("data.train", "x, y", "x"),
        ("training.bagging", "–", "True"),
    ]
    assert compare.config_differences("", "") == []


def test_page_of_two_runs() -> None:
    hostile = "<script>alert('x')</script>\"{{ 7 * 7 }}"
    first = run({"home/test": {}, "away/test": {}}, n=80)
    second = run({"home/test": {"signal": 2.0}, "other/test": {}}, n=80, members=4)
    names = (hostile, "better")
    one = summary(("home/test",), ("away/test",), name=hostile, config_yaml=json.dumps({"name": hostile}))
    other = summary(("home/test", "other/test"), name="better", config_yaml="name: better\n")
    analyses = tuple(Evidence(ps).analyze(resamples=40) for ps in (first, second))
    comparisons = compare_runs(first, second, names, resamples=200)
    html = build_comparison(one, other, (analyses[0], analyses[1]), comparisons)
    page = Page(html)
    assert "script" not in page.tags
    assert "http:" not in html
    assert "https:" not in html
    assert hostile in page.text
    assert " 49" not in page.text
    assert "“better” is right more often" in page.text
    assert "home/test (in domain, n = 80)" in page.text
    # Sets of one run alone have its numbers, and no paired difference.
    assert page.text.count("away/test (out of domain, n = 80)") == 1
    assert page.text.count("other/test (in domain, n = 80)") == 1
    assert "nan" not in page.text


def test_a_set_may_be_in_domain_for_one_alone() -> None:
    first, second = summary(("x/test",)), replace(summary(("y/test",)), out_of_domain=("x/test",))
    row = Row("x", "test", "ensemble", 2, "ensemble", "accuracy", 0.5, 250)
    found = Results(Analysis([row]), "ensemble")
    (s,) = compare.shared_sets((first, second), (found, found))
    assert s.role == "in domain for one of them"
