from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from synthetic import answers

from ripieno.measures import Analysis, Comparison, Costs, Evidence, Row, summarise_rotations
from ripieno.report import terminal


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    """A base and an ensemble at two epochs, at home and on a set of fewer choices elsewhere."""
    parts = []
    for seed, (name, sizes) in enumerate({"home/test": (5,), "away/test": (3, 4)}.items()):
        parts.append(answers(name, seed=seed, n=60, sizes=sizes, epoch=0, members=1, method="base"))
        parts += [answers(name, seed=seed, n=60, sizes=sizes, epoch=epoch, members=2) for epoch in (1, 2)]
    calibration = [answers("cal/test", seed=9, n=50, members=2)]
    evidence = Evidence(parts, out_of_domain=["away/test"], calibration=calibration)
    return evidence.analyze(costs=Costs(error=5.0, handover=1.0), resamples=50)


def value(analysis: Analysis, **wanted: object) -> float:
    wanted = {"pooling": "prob", "variant": None, "against": None, "method": "ensemble", "epoch": 2} | wanted
    [row] = [r for r in analysis.rows if all(getattr(r, key) == of for key, of in wanted.items())]
    assert row.value is not None
    return row.value


def says_nothing_odd(lines: list[str]) -> None:
    for line in lines:
        assert not re.search(r"\b(nan|None|inf|True|False)\b", line), line
        assert "\n" not in line
        assert line == line.rstrip()


def test_summary_shows_the_numbers_of_the_analysis(analysis):
    lines = list(terminal.summary(analysis, "ensemble"))
    says_nothing_odd(lines)
    at = lines.index("away/test")
    for offset, (name, of) in enumerate(
        {
            "base": {"method": "base", "epoch": 0, "who": "ensemble"},
            "mean member": {"who": "members_mean"},
            "ensemble": {"who": "ensemble"},
        }.items(),
        start=2,
    ):
        shown = [f"{value(analysis, dataset='away', measure=m, **of):.3f}" for m in ("accuracy", "nll", "ece")]
        assert lines[at + offset].split() == [*name.split(), *shown]
    differences = [c for c in analysis.comparisons if (c.dataset, c.measure, c.first) == ("away", "nll", "ensemble")]
    assert len(differences) == 3
    for offset, c in enumerate(differences, start=5):
        assert lines[at + offset].strip() == (
            f"ensemble's NLL less that of {c.second}: {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]"
        )
    of = {"dataset": "away", "who": "ensemble", "against": "home/test", "variant": "k_matched"}
    names = {"entropy": "entropy", "mi": "members' disagreement", "confidence": "confidence"}
    shown = [f"{name} {value(analysis, measure=f'ood_auroc_{s}', **of):.2f}" for s, name in names.items()]
    assert lines[-1].strip() == f"away/test from home/test: {', '.join(shown)}"


def test_where_nothing_can_be_told_apart_the_summary_says_why(analysis):
    rows = [
        replace(row, value=None, low=None, high=None, reason="the choices stand in the prompt")
        if row.variant == "k_matched"
        else row
        for row in analysis.rows
    ]
    lines = list(terminal.summary(replace(analysis, rows=rows), "ensemble"))
    assert lines[-1].strip() == "away/test from home/test: not known: the choices stand in the prompt"


def test_a_summary_without_labels_or_base_shows_a_dash():
    rows = Evidence([answers("home/test", seed=0, n=20, labelled=False)]).analyze(resamples=20)
    lines = list(terminal.summary(rows, "ensemble"))
    says_nothing_odd(lines)
    # There is no base, so no line of it.
    assert [line.split()[-3:] for line in lines[2:]] == [["-", "-", "-"]] * 2


def test_the_table_shows_the_ensembles_at_their_last_epochs_and_counts_the_rest(analysis):
    lines = list(terminal.table(analysis))
    says_nothing_odd(lines)
    expected = [
        row
        for row in analysis.rows
        if row.pooling == "prob"
        and (row.who == "ensemble" or (row.who == "members_mean" and row.method == "ensemble"))
        and row.epoch == (0 if row.method == "base" else 2)
    ]
    shown, heading = [], ""
    end = lines.index("Paired differences on the same questions (p: corrected for all of a data set, Holm)")
    for line in lines[:end]:
        if line.startswith("  ") and not line.strip().startswith("value"):
            measure, number, n, *rest = line.split(maxsplit=3)
            shown.append((heading, measure, number, n, *rest))
        elif line and not line.startswith(" "):
            heading = line
    assert len(shown) == len(expected)
    for row, (_, measure, number, n, *rest) in zip(expected, shown, strict=True):
        assert (measure, n) == (row.measure, f"{row.n:,}")
        assert number == ("-" if row.value is None else f"{row.value:.4f}")
        if row.value is None:
            assert rest == [f"({row.reason})"]
        else:
            assert rest == ([] if row.low is None else [f"[{row.low:.4f}, {row.high:.4f}]"])
    headings = list(dict.fromkeys(of for of, *_ in shown))
    assert headings[0] == "home/test · base epoch 0 · ensemble"
    assert "away/test · ensemble epoch 2 · mean member" in headings
    assert "home/test · ensemble epoch 2 · ensemble · temperature" in headings
    assert "away/test · ensemble epoch 2 · ensemble · k matched · against home/test" in headings
    c, line = analysis.comparisons[-1], lines[end + len(analysis.comparisons)]
    for number in (f"{c.difference:+.4f}", f"[{c.low:+.4f}, {c.high:+.4f}]", f"p = {c.p_holm:.3g}", c.first, c.second):
        assert number in line
    assert lines[-1].startswith(f"{len(analysis.rows) - len(expected):,} more rows ")


def test_a_temperature_shows_before_and_after(analysis):
    lines = list(terminal.before_and_after(analysis.rows, "ensemble", 2))
    says_nothing_odd(lines)
    assert [line.split(":")[0].strip() for line in lines] == ["home/test", "away/test"]
    for line, dataset in zip(lines, ("home", "away"), strict=True):
        for measure in ("nll", "brier", "ece", "mean_confidence", "mutual_information"):
            before, after = (
                value(analysis, dataset=dataset, who="ensemble", measure=measure, variant=variant)
                for variant in (None, "temperature")
            )
            assert f"{measure.replace('_', ' ')} {before:.3f} -> {after:.3f}" in line
    assert list(terminal.before_and_after(analysis.rows, "ensemble", 1)) == []


@pytest.mark.parametrize(
    ("measure", "difference", "p", "said"),
    [
        ("nll", -0.2, 0.01, "one is better"),
        ("nll", 0.2, 0.01, "two is better"),
        ("accuracy", 0.2, 0.01, "one is better"),
        ("error_auroc_confidence", -0.2, 0.01, "two is better"),
        ("aurc_confidence", -0.2, 0.049, "one is better"),
        ("nll", -0.2, 0.051, "not told apart"),
    ],
)
def test_two_runs_are_told_apart_or_not(measure, difference, p, said):
    ends = (difference, difference - 0.1, difference + 0.1)
    _, line = terminal.compared([Comparison("home", "test", measure, "one", "two", *ends, 30, p / 2, p)])
    assert line.endswith(f"p = {p:.2g}: {said}")
    assert f"home/test  {measure}: {difference:+.3f} [{ends[1]:+.3f}, {ends[2]:+.3f}]" in line


def test_the_most_certain_and_the_smallest_are_numbers_too():
    where = ("home", "", "ensemble", 1, "ensemble")
    rows = [Row(*where, "nll", np.float64(0.0), 1), Row(*where, "brier", 1e-9, 1, 0.0, 1e-9)]
    lines = list(terminal.table(Analysis(rows)))
    assert lines[0] == "home · ensemble epoch 1 · ensemble"
    assert [line.split()[1] for line in lines[2:]] == ["0.0000", "0.0000"]


def test_rotations_are_said_of_one_question_without_an_answer_and_of_the_base_alone():
    """Two members that answer the first place whatever stands there, and a base that does; no interval, no accuracy."""
    places = np.array([[[np.eye(2)[j]]] * 2 for j in range(2)])
    mask = np.ones((1, 2), dtype=bool)
    alone = summarise_rotations(places[:, :1], mask, np.array([0]))
    together = summarise_rotations(places, mask, np.array([-1]))
    members = list(terminal.rotated({"home/test": together}, 3))
    says_nothing_odd(members)
    assert (
        members[0] == "home/test: 1 question, each asked under every rotation of its choices, of 2 members at epoch 3"
    )
    assert [line.split()[-1] for line in members[2:6]] == ["0.693", "0.000", "0.000", "0.693"]
    assert members[6:] == [
        "  accuracy: - (no question has a known answer)",
        "  Reordering the choices accounts for 0.693 of the 0.693 nats of uncertainty, the members for 0.000.",
        "  (Each grows with how many there are: up to 2 rotations, 2 members.)",
    ]
    base = list(terminal.rotated({"home/test": alone}, 0))
    says_nothing_odd(base)
    assert base[0].endswith("of the base")
    assert not any("member " in line for line in base[1:3] + base[4:])
    # The mean is even between the two, and the first of equals is the answer; each rotation has one of them.
    assert [line.split()[-1] for line in base[6:10]] == ["1.000", "0.500", "0.000", "1.000"]
    assert base[-1] == "  Reordering the choices accounts for 0.693 of the 0.693 nats of uncertainty."
