"""Crafted numbers, and the sentences that they allow."""

from __future__ import annotations

import pytest
from synthetic import answers, summary

from ripieno.measures.analysis import Comparison, Row
from ripieno.report import story
from ripieno.report.results import EvaluatedSet, Interval, Results, evaluated_set

Numbers = dict[str, tuple[float, float, float]]

HOME = EvaluatedSet("home/test", False, 250, (5,), 1.609, 0.2, Interval(0.0, -0.05, 0.05))
AWAY = EvaluatedSet("away/test", True, 250, (5,), 1.609, 0.2, Interval(0.0, -0.05, 0.05))
LAW = EvaluatedSet("law/test", True, 250, (4,), 1.386, 0.25, Interval(0.0, -0.05, 0.05))
CALM: Numbers = {"accuracy": (0.45, 0.39, 0.51), "mean_confidence": (0.47, 0.45, 0.49)}
ECE: Numbers = {"ece": (0.06, 0.06, 0.06), "ece_null_q95": (0.10, 0.10, 0.10)}


def rows(name: str, numbers: Numbers, method: str = "ensemble") -> list[Row]:
    dataset, split = name.split("/")
    epoch = 0 if method == "base" else 2
    return [
        Row(dataset, split, method, epoch, "ensemble", measure, value, 250, low, high)
        for measure, (value, low, high) in numbers.items()
    ]


def results(*parts: list[Row], comparisons: tuple[Comparison, ...] = ()) -> Results:
    return Results([row for part in parts for row in part], comparisons, "ensemble")


def test_interval_claims_only_what_it_excludes() -> None:
    x = Interval(0.5, 0.4, 0.6)
    assert [x.against(r) for r in (0.3, 0.5, 0.7)] == [1, 0, -1]
    assert [x.apart(Interval(0, a, b)) for a, b in ((0.1, 0.3), (0.1, 0.5), (0.7, 0.9))] == [1, 0, -1]
    assert Interval(0.5).against(0.0) == 0
    assert x.apart(Interval(0.0)) == 0
    assert x / 2 == Interval(0.25, 0.2, 0.3)


def test_trained_names_what_was_done() -> None:
    finding = story.trained(summary(("home/test",), ("away/test",)))
    assert finding.verdict == "3 members on 400 questions, for 2 epochs (passes over them)."
    assert "Out of domain (of another kind): away/test." in finding.points[1]
    assert "no second opinion" in story.trained(summary(("home/test",), members=1)).points[0]


@pytest.mark.parametrize(
    ("own", "base", "said"),
    [
        ((0.45, 0.39, 0.51), (0.22, 0.17, 0.27), "Better than both."),
        ((0.21, 0.16, 0.26), (0.22, 0.17, 0.27), "It cannot be told from either."),
        ((0.45, 0.39, 0.51), (0.42, 0.36, 0.48), "Better than a guess; it cannot be told from the base."),
        ((0.10, 0.06, 0.14), (0.22, 0.17, 0.27), "Worse than both."),
        ((0.30, 0.25, 0.35), (0.42, 0.36, 0.48), "Better than a guess; worse than the base."),
    ],
)
def test_right_on(own: tuple[float, float, float], base: tuple[float, float, float], said: str) -> None:
    found = results(rows("home/test", {"accuracy": own}), rows("home/test", {"accuracy": base}, "base"))
    assert story.right_on(found, HOME).endswith(said)


def test_right_on_gives_numbers_with_intervals() -> None:
    found = results(rows("home/test", CALM))
    assert story.right_on(found, HOME) == (
        "home/test (in domain, 250 questions): right on 45% (39% to 51%); a guess gets 20%. Better than a guess."
    )


def test_paired_comparisons_come_first() -> None:
    """Two intervals that overlap may still differ surely on the same questions."""
    paired = Comparison("home", "test", "accuracy", "ensemble", "base", 0.03, 0.01, 0.05, 250)
    base = rows("home/test", {"accuracy": (0.42, 0.36, 0.48)}, "base")
    found = results(rows("home/test", CALM), base, comparisons=(paired,))
    assert story.right_on(found, HOME).endswith("Better than both.")


def test_probabilities_label_the_mean_member_as_no_evidence() -> None:
    comparisons = tuple(
        Comparison("home", "test", "nll", "ensemble", second, *numbers, 250)
        for second, numbers in {
            "uniform guess": (-0.25, -0.35, -0.15),
            "base, temperature-scaled": (-0.05, -0.12, 0.02),
            "base": (0.30, 0.20, 0.40),
            "mean member": (-0.04, -0.05, -0.03),
        }.items()
    )
    said = story.probabilities_on(results(rows("home/test", CALM), comparisons=comparisons), HOME)
    assert said is not None
    assert "better than a uniform guess by 0.25 (0.15 to 0.35)" in said
    assert "worse than the base by 0.30 (0.20 to 0.40)" in said
    assert "not to be told from the base with its confidence corrected" in said
    assert "better than its average member by 0.04 (0.03 to 0.05), which is no evidence" in said


@pytest.mark.parametrize(
    ("gap", "ece", "way", "said"),
    [
        (Interval(0.07, 0.02, 0.12), 0.12, 1, "over-confident by 7 points (2 to 12)"),
        (Interval(-0.07, -0.12, -0.02), 0.12, -1, "under-confident by 7 points (2 to 12)"),
        (Interval(0.06, 0.004, 0.12), 0.09, 1, "over-confident by 6.0 points (0.4 to 12.0)"),
        (Interval(0.01, -0.04, 0.06), 0.06, 0, "No sign of a wrong confidence"),
        (Interval(0.01, -0.04, 0.06), 0.15, None, "Too sure at some levels, not sure enough at others"),
    ],
)
def test_confidence_on(gap: Interval, ece: float, way: int | None, said: str) -> None:
    s = EvaluatedSet("home/test", False, 250, (5,), 1.609, 0.2, gap)
    found = results(rows("home/test", {**CALM, "ece": (ece,) * 3, "ece_null_q95": (0.1,) * 3}))
    assert story.confidence_on(found, s)[0] == way
    assert said in story.confidence_on(found, s)[1]
    assert f"(ECE) is {ece:.2f}" in story.confidence_on(found, s)[1]


def test_confidence_of_a_calibrated_and_an_overconfident_model() -> None:
    """The gap is measured on the questions themselves: 54% sure where 54% are right, and a model twice as sure."""
    calibrated = evaluated_set(answers("a/test", seed=1, n=4000, spread=0.0), out=False).gap
    overconfident = evaluated_set(answers("a/test", seed=1, n=4000, scale=2.0, spread=0.0), out=False).gap
    assert calibrated is not None
    assert overconfident is not None
    assert calibrated.against(0.0) == 0
    assert overconfident.against(0.0) == 1


def signals(entropy: tuple[float, float, float], disagreement: tuple[float, float, float]) -> Numbers:
    normalised = (entropy[0] / 1.609, entropy[1] / 1.609, entropy[2] / 1.609)
    return {
        "predictive_entropy": entropy,
        "normalised_entropy": normalised,
        "mutual_information": disagreement,
        **CALM,
        **ECE,
    }


INSIDE = signals((1.10, 1.05, 1.15), (0.050, 0.045, 0.055))


@pytest.mark.parametrize(
    ("outside", "ways", "said"),
    [
        (signals((1.40, 1.35, 1.45), (0.080, 0.070, 0.090)), {1}, "they disagree more here, as they should"),
        (signals((1.12, 1.07, 1.17), (0.051, 0.046, 0.056)), set(), "the intervals overlap, so it says nothing"),
        (signals((0.90, 0.85, 0.95), (0.051, 0.046, 0.056)), {-1}, "surer here than at home, which misleads"),
        (signals((1.40, 1.35, 1.45), (0.020, 0.015, 0.025)), {1, -1}, "they agree more here than at home"),
    ],
)
def test_noticed(outside: Numbers, ways: set[int], said: str) -> None:
    found = results(rows("home/test", INSIDE), rows("away/test", outside))
    assert story.noticed(found, HOME, AWAY, members=3)[0] == ways
    assert said in story.noticed(found, HOME, AWAY, members=3)[1]


def test_hardly_any_disagreement_says_nothing() -> None:
    quiet = [signals((1.1, 1.0, 1.2), (value, value, value)) for value in (0.001, 0.004)]
    found = results(rows("home/test", quiet[0]), rows("away/test", quiet[1]))
    way, said = story.disagreement_signal(found, HOME, AWAY)
    assert way == 0
    assert "hardly disagree anywhere (0.004 against 0.001 in domain), so it says nothing" in said


def test_number_of_choices_is_taken_out() -> None:
    """The same share of ln K, of 4 choices and of 5: entropy in nats differs surely, and says nothing."""
    numbers = signals((0.95, 0.92, 0.98), (0.043, 0.040, 0.046)) | {"normalised_entropy": (0.69, 0.66, 0.72)}
    found = results(rows("home/test", INSIDE), rows("law/test", numbers))
    way, said = story.entropy_signal(found, HOME, LAW)
    assert way == 0
    assert said.startswith("entropy, as a share of ln K, 69% (66% to 72%) against 68%")
    assert "of ln K" in story.disagreement_signal(found, HOME, LAW)[1]
    finding = story.how_noticed(found, [HOME, LAW], members=3)
    assert "The number of choices alone moves both" in finding.points[0]
    assert finding.verdict == "No: nothing here shows that it does."


def test_verdicts_over_sets() -> None:
    outside = signals((1.40, 1.35, 1.45), (0.080, 0.070, 0.090))
    found = results(rows("home/test", INSIDE), rows("away/test", outside), rows("law/test", INSIDE))
    assert story.how_noticed(found, [HOME, AWAY], 3).verdict == "On average, yes."
    assert story.how_noticed(found, [HOME, AWAY, LAW], 3).verdict == "In part: on 1 of 2 unfamiliar sets."
    assert story.how_noticed(found, [HOME], 3).verdict.startswith("Not tested")
    torn = results(rows("home/test", INSIDE), rows("away/test", signals((1.40, 1.35, 1.45), (0.020, 0.015, 0.025))))
    assert story.how_noticed(torn, [HOME, AWAY], 3).verdict.startswith("Not reliably: on 1 of 1 unfamiliar sets")
    assert story.how_right(found, [HOME, AWAY]).verdict == (
        "In domain: better than a guess. Out of domain: better than a guess."
    )
    assert story.how_confident(found, [HOME]).verdict == "In domain: no sign that it is wrong."


def test_where_not() -> None:
    guessing = signals((1.12, 1.07, 1.17), (0.051, 0.046, 0.056)) | {"accuracy": (0.25, 0.20, 0.30)}
    sure = EvaluatedSet("law/test", True, 250, (5,), 1.609, 0.25, Interval(0.2, 0.15, 0.25))
    base = [*rows("home/test", {"accuracy": (0.22, 0.17, 0.27)}, "base"), *rows("law/test", guessing, "base")]
    found = results(rows("home/test", INSIDE), rows("law/test", guessing), base)
    finding = story.where_not(found, [HOME, sure], members=3)
    assert finding.verdict == "On 1 of 2 sets shown here there is a reason not to."
    assert finding.points == (
        "law/test: its answers are not shown to be better than a guess; training is not shown to help there; it is too "
        "sure of itself, by 20 points (15 to 25); nothing clearly warns that it is unfamiliar.",
        story.ALWAYS,
    )
    assert story.where_not(found, [HOME], members=3).verdict.startswith("No set shown here gives a reason not to")
