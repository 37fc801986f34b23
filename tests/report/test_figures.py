"""Figures by their text alternatives and sentences: what they show, computed by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from synthetic import answers

from ripieno.measures.table import Analysis, Flow, Row, SizePoint
from ripieno.measures.uncertainty import decompose
from ripieno.report import curves, figures, plots
from ripieno.report.results import EvaluatedSet, Interval, Results, evaluated_set

HOME = EvaluatedSet("home/test", False, 10, (5,), 1.609, 0.2, None)


def test_risks_of_a_perfect_and_of_a_useless_order() -> None:
    """Four of ten are wrong. The perfect order's surest half has none; in a single tie any half has 40%."""
    wrong = np.array([0.0] * 6 + [1.0] * 4)
    perfect, tied = np.arange(10.0), np.zeros(10)
    panel = curves.risks({"confidence": perfect, "entropy": tied}, wrong, "k")
    assert panel.alt == (
        "Share wrong against share answered. All answered: 0.40. Half answered, the rest handed over by "
        "confidence: 0.00, entropy: 0.40."
    )


def test_risks_are_drawn_with_few_points_for_many_questions() -> None:
    rng = np.random.default_rng(0)
    panel = curves.risks({"mi": rng.random(20_000)}, (rng.random(20_000) < 0.3).astype(float), "k")
    assert len(panel.svg) < 12_000


def test_histogram_counts_everything_and_what_lies_beyond() -> None:
    shares = plots.shares(np.array([-0.1, 0.0, 0.5, 1.0, 2.0]), (0.0, 1.0))
    assert shares.sum() == pytest.approx(1.0)
    assert (shares[0], shares[-1]) == (0.4, 0.4)


def test_dots_are_drawn_one_a_question() -> None:
    rng = np.random.default_rng(1)
    entropy, mutual = 1.5 * rng.random(30), 0.1 * rng.random(30)
    panel = plots.density(entropy, mutual, np.full(30, 1.6), (1.7, 0.12), "wrong", "d")
    (dots,) = re.findall(r'<path d="([^"]*)"[^>]*stroke-linecap: round', panel.svg)
    assert dots.count("M ") == 30
    assert panel.label == "✗ 30 wrong answers"


def point(measure: str, members: int, gain: tuple[float, float, float] | None) -> SizePoint:
    value, low, high = (None, None, None) if gain is None else gain
    return SizePoint("home", "test", "ensemble", 2, measure, members, 1, 0.5, 0.4, 0.6, value, low, high, 10)


def results(sizes: list[SizePoint], flows: list[Flow]) -> Results:
    row = Row("home", "test", "ensemble", 2, "ensemble", "accuracy", 0.5, 10)
    return Results(Analysis([row], [], sizes, flows), "ensemble")


BEYOND, NOISE = (0.1, 0.05, 0.15), (0.01, -0.01, 0.03)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ((BEYOND, BEYOND), "Accuracy: each member up to the 3rd still brought a gain beyond the noise."),
        ((BEYOND, NOISE), "Accuracy: up to 2 members each brings a gain beyond the noise; that of the 3rd falls"),
        ((NOISE, NOISE), "Accuracy: already the second member's gain falls inside the noise (n = 10)."),
    ],
)  # fmt: skip
def test_where_one_more_member_no_longer_shows(gains: tuple[tuple[float, float, float], ...], said: str) -> None:
    points = [point("accuracy", 1, None), *(point("accuracy", m, gain) for m, gain in enumerate(gains, start=2))]
    (figure,) = figures.sizes(results(points, []), [HOME])
    (sentence,) = figure.sentences
    assert sentence.startswith(said)
    assert len(figure.panels) == 1


def test_a_lower_nll_of_more_members_is_no_surprise() -> None:
    points = [point("nll", 1, None), point("nll", 2, (-0.2, -0.3, -0.1))]
    (figure,) = figures.sizes(results(points, []), [HOME])
    assert figure.sentences == ("NLL: every member lowers it (convexity); the 2nd still by 0.200 (0.100 to 0.300).",)


def flow(epochs: tuple[int, int], states: tuple[str, str], count: int) -> Flow:
    return Flow("home", "test", "ensemble", *epochs, *states, count, 10)


def test_flows_keep_every_question() -> None:
    between = [
        flow((1, 2), ("right, low", "right, low"), 3),
        flow((1, 2), ("right, high", "wrong, high"), 1),
        flow((1, 2), ("wrong, high", "right, low"), 4),
        flow((1, 2), ("wrong, low", "wrong, low"), 2),
    ]
    assert curves.flow(between, "f").alt == (
        "Questions by state. epoch 1: 3 right, agree, 1 right, disagree, 4 wrong, disagree, 2 wrong, agree; "
        "epoch 2: 7 right, agree, 0 right, disagree, 1 wrong, disagree, 2 wrong, agree."
    )


def test_learned_and_forgotten() -> None:
    found = [
        flow((0, 2), ("right", "right"), 2),
        flow((0, 2), ("right", "wrong"), 1),
        flow((0, 2), ("wrong", "right"), 4),
        flow((0, 2), ("wrong", "wrong"), 3),
    ]
    (figure,) = figures.flows(results([], found), [HOME])
    assert figure.panels == ()
    assert figure.sentences == (
        "Of 10 questions the base was right on 3 (30%); of those the ensemble forgot 1. It learned 4 that the base got "
        "wrong: 6 right in all.",
    )


def test_a_course_says_what_it_shows() -> None:
    line = curves.Course([(1, Interval(0.6, 0.5, 0.7)), (2, Interval(0.7))], line="mi")
    other = curves.Course([(1, Interval(0.5))], line="entropy")
    panel = curves.course("AUROC", [line, other], (0.0, 1.0), Interval(0.5), "c")
    assert panel.alt == (
        "AUROC by epoch. By mi: epoch 1 0.60, epoch 2 0.70. By entropy: epoch 1 0.50. Dashed reference: 0.50."
    )
    assert "epoch (0: the base)" not in panel.svg


def test_histograms_are_matched_where_leaving_a_choice_out_is_what_asking_again_gives() -> None:
    """A listed choice changes the others' scores, so that without asking again both sets are drawn as they are."""
    inside, outside = answers("home/test", seed=1, n=40), answers("away/test", seed=2, n=40, sizes=(4,))
    found = Results(Analysis(), "ensemble")
    sets = [evaluated_set(found, inside, False), evaluated_set(found, outside, True)]
    (figure,) = figures.histograms([inside, outside], sets, [])
    assert figure.sentences == ("K-matched: wrong choices dropped at random until every question has 4.",)
    assert len(figure.panels) == 3

    listed = {"template": {"name": "letters"}}
    both = [replace(p, metadata=listed) for p in (inside, outside)]
    (figure,) = figures.histograms(both, sets, [])
    assert figure.sentences == ("As they are: the numbers of choices differ, which alone moves all three.",)
    again = replace(answers("home/test", seed=3, n=40, sizes=(4,)), metadata={**listed, "choices": 4})
    (figure,) = figures.histograms(both, sets, [again])
    assert figure.sentences == ("K-matched: wrong choices dropped at random until every question has 4.",)
    entropies = decompose(again.probs).total
    assert f"in domain: median {np.median(entropies):.3f}" in figure.panels[0].alt

    same = answers("away/test", seed=2, n=40)
    (figure,) = figures.histograms([inside, same], sets, [])
    assert figure.sentences == ()
    assert figures.histograms([inside], sets[:1], []) == []
