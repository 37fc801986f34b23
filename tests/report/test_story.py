"""Crafted numbers, and the sentences that they allow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import answers, summary

from ripieno.measures.analysis import analyze
from ripieno.measures.table import BASELINES, Analysis, Comparison, Row
from ripieno.predictions import Predictions
from ripieno.report import believed, handover, story, unfamiliar
from ripieno.report.results import EvaluatedSet, Interval, Results, evaluated_set
from ripieno.report.words import probability, spoken

Numbers = dict[str, tuple[float, float, float]]

HOME = EvaluatedSet("home/test", False, 250, (5,), 1.609, 0.2, Interval(0.0, -0.05, 0.05), "home")
AWAY = EvaluatedSet("away/test", True, 250, (5,), 1.609, 0.2, Interval(0.0, -0.05, 0.05), "away")
LAW = EvaluatedSet("law/test", True, 250, (4,), 1.386, 0.25, Interval(0.0, -0.05, 0.05), "law")
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
    return Results(Analysis([row for part in parts for row in part], comparisons), "ensemble")


def apart(name: str, numbers: Numbers, variant: str | None = "k_matched") -> list[Row]:
    """Rows of how well each score tells a set from home; AUROCs by score."""
    dataset, split = name.split("/")
    return [
        Row(
            *(dataset, split, "ensemble", 2, "ensemble", f"ood_auroc_{score}", value, 500, low, high),
            variant=variant,
            against="home/test",
        )
        for score, (value, low, high) in numbers.items()
    ]


def test_interval_claims_only_what_it_excludes() -> None:
    x = Interval(0.5, 0.4, 0.6)
    assert [x.against(r) for r in (0.3, 0.5, 0.7)] == [1, 0, -1]
    assert [x.apart(Interval(0, a, b)) for a, b in ((0.1, 0.3), (0.1, 0.5), (0.7, 0.9))] == [1, 0, -1]
    assert Interval(0.5).against(0.0) == 0
    assert x.apart(Interval(0.0)) == 0


def test_trained_names_what_was_done() -> None:
    finding = story.trained(summary(("home/test",), ("away/test",)), [HOME, AWAY])
    assert finding.verdict == "3 members on 400 questions, for 2 epochs (passes over them)."
    assert "In domain (of the kind it was trained on): home. Out of domain: away." in finding.points[1]
    assert "nothing of training again" in finding.more[1]
    assert "training again, on other seeds" in story.trained(summary(("home/test",)), again=True).more[1]
    assert "on top of tiny, the base" in story.trained(summary(("home/test",), base="/models/tiny")).points[0]
    assert "on top of Qwen/Qwen3-0.6B, the base" in story.trained(summary(("a/b",), base="Qwen/Qwen3-0.6B")).points[0]
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
    assert story.right_on(found, HOME) == ("home: 45% (39% to 51%) right; a guess 20%. Better than a guess.")


def test_paired_comparisons_come_first() -> None:
    """Two intervals that overlap may still differ surely on the same questions."""
    paired = Comparison("home", "test", "accuracy", "ensemble", "base", 0.03, 0.01, 0.05, 250, 0.01, 0.02)
    base = rows("home/test", {"accuracy": (0.42, 0.36, 0.48)}, "base")
    found = results(rows("home/test", CALM), base, comparisons=(paired,))
    assert story.right_on(found, HOME).endswith("Better than both.")


def test_probabilities_label_the_mean_member_as_no_evidence() -> None:
    comparisons = tuple(
        Comparison("home", "test", "nll", "ensemble", second, *numbers, 250, 0.01, 0.02)
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
        (Interval(0.01, -0.04, 0.06), 0.06, 0, "46% sure on average, 45% right. ECE"),
        (Interval(0.01, -0.04, 0.06), 0.15, None, "Too sure at some levels, not sure enough at others"),
    ],
)
def test_confidence_on(gap: Interval, ece: float, way: int | None, said: str) -> None:
    s = EvaluatedSet("home/test", False, 250, (5,), 1.609, 0.2, gap)
    found = results(rows("home/test", {**CALM, "ece": (ece,) * 3, "ece_null_q95": (0.1,) * 3}))
    found_way, sentence = believed.confidence_on(found, s)
    assert found_way == way
    assert said in sentence
    assert f"ECE {ece:.2f}; chance alone gives up to 0.10." in sentence


def test_a_blunter_ece_is_named() -> None:
    s = EvaluatedSet("home/test", False, 250, (5,), 1.609, 0.2, Interval(0.07, 0.02, 0.12))
    found = results(rows("home/test", {**CALM, **ECE}))
    assert "This blunter test would not show it." in believed.confidence_on(found, s)[1]


def test_what_more_is_known_of_calibration() -> None:
    scaled = [
        Row("home", "test", "ensemble", 2, "ensemble", measure, value, 250, variant="temperature")
        for measure, value in (("temperature", 1.5), ("ece", 0.04))
    ]
    found = results(rows("home/test", {**CALM, **ECE, "debiased_ce": (0.05, 0.01, 0.09)}), scaled)
    said = believed.more_on(found, HOME)
    assert said is not None
    assert "is 0.050 (0.010 to 0.090)" in said
    assert "one temperature (1.50; above 1 it lowers every confidence)" in said
    assert said.endswith("brings the ECE to 0.04.")


def test_confidence_of_a_calibrated_and_an_overconfident_model() -> None:
    """The gap is measured on the questions themselves: 54% sure where 54% are right, and a model twice as sure."""

    def gap(scale: float) -> Interval | None:
        p = answers("a/test", seed=1, n=4000, scale=scale, spread=0.0)
        found = Results(Analysis(analyze([p], resamples=200)), "ensemble")
        return evaluated_set(found, p, out=False).gap

    calibrated, overconfident = gap(1.0), gap(2.0)
    assert calibrated is not None
    assert overconfident is not None
    assert calibrated.against(0.0) == 0
    assert overconfident.against(0.0) == 1


YES, NO, LESS = (0.70, 0.65, 0.75), (0.51, 0.46, 0.56), (0.40, 0.35, 0.45)


@pytest.mark.parametrize(
    ("entropy", "mi", "verdict"),
    [
        (YES, YES, "Yes, on average."),
        ((0.56, 0.53, 0.59), (0.55, 0.52, 0.58), "Yes but weakly, on average."),
        (YES, NO, "Yes, on average. Its members' disagreement says nothing on the unfamiliar set."),
        (YES, LESS, "Yes, on average. Its members' disagreement misleads on the unfamiliar set."),
        (NO, NO, "No: nothing here shows that it does."),
        (NO, YES, "Only its members' disagreement does, on the unfamiliar set."),
        (NO, LESS, "No: nothing here shows that it does. Its members' disagreement misleads on the unfamiliar set."),
        (LESS, YES, "No: nothing here shows that it does. "
                    "On the unfamiliar set it is surer than at home, which misleads."),
    ],
)  # fmt: skip
def test_noticed(entropy: tuple[float, float, float], mi: tuple[float, float, float], verdict: str) -> None:
    found = results(apart("away/test", {"entropy": entropy, "mi": mi, "confidence": entropy}))
    assert unfamiliar.verdict([unfamiliar.signs_on(found, HOME, AWAY)]) == verdict


def test_a_trivial_baseline_that_does_better_is_named_whichever_way_it_lies() -> None:
    numbers = {"entropy": YES, "mi": NO, "confidence": YES, "prompt_length": (0.05, 0.03, 0.07), "choices": (0.5,) * 3}
    sign = unfamiliar.signs_on(results(apart("away/test", numbers)), HOME, AWAY)
    assert sign.beaten == "prompt_length"
    assert "the prompt's length alone tells in 95% (93% to 97%)" in sign.sentence
    assert unfamiliar.verdict([sign]).endswith("On the unfamiliar set the prompt's length alone tells better.")
    # One that is not surely better is told, and not called better.
    close = {**numbers, "prompt_length": (0.72, 0.66, 0.78)}
    sign = unfamiliar.signs_on(results(apart("away/test", close)), HOME, AWAY)
    assert sign.beaten is None
    assert "the prompt's length alone tells in 72%" in sign.sentence


def test_every_baseline_has_a_name() -> None:
    assert set(BASELINES) < set(unfamiliar.NAMES)


def test_matched_numbers_come_first_and_unmatched_ones_are_marked() -> None:
    both = [*apart("law/test", {"entropy": YES}, None), *apart("law/test", {"entropy": NO})]
    sign = unfamiliar.signs_on(results(both), HOME, LAW)
    assert (sign.way, sign.matched) == (0, True)
    sign = unfamiliar.signs_on(results(apart("law/test", {"entropy": YES}, None)), HOME, LAW)
    assert (sign.way, sign.matched) == (1, False)
    assert "The number of choices differs, which alone moves these" in sign.sentence
    assert unfamiliar.verdict([unfamiliar.signs_on(results(), HOME, LAW)]) == "Not measured."


def test_verdicts_over_sets() -> None:
    yes = {"entropy": YES, "mi": YES, "confidence": YES}
    found = results(
        apart("away/test", yes),
        apart("law/test", {"entropy": NO, "mi": NO, "confidence": NO}),
        *(rows(name, CALM) for name in ("home/test", "away/test", "law/test")),
    )
    assert story.how_noticed(found, [HOME, AWAY]).verdict == "Yes, on average."
    assert story.how_noticed(found, [HOME, AWAY, LAW]).verdict == (
        "In part: on 1 of 2 unfamiliar sets. Its members' disagreement says nothing on 1 of 2 unfamiliar sets."
    )
    assert story.how_noticed(found, [HOME]).verdict.startswith("Not tested")
    assert story.how_right(found, [HOME, AWAY]).verdict == (
        "In domain: 45% right, better than a guess. Out of domain: 45% right, better than a guess."
    )
    found = results(rows("home/test", {**CALM, **ECE}))
    assert story.how_believed(found, [HOME]).verdict == "In domain: no sign that it is wrong."


def test_only_a_few_sets_stand_on_the_first_screen() -> None:
    sets = [EvaluatedSet(f"s{i}/test", True, 250, (5,), 1.609, 0.2, None, f"s{i}") for i in range(6)]
    found = results(rows("home/test", CALM), *(rows(s.name, CALM) for s in sets))
    finding = story.how_right(found, [HOME, *sets])
    assert finding.verdict.endswith("Out of domain: better than a guess.")
    assert len(finding.points) == 1 + story.SHOWN
    assert sum("% right" in said.replace(") right", "% right") for said in finding.more) == 6 - story.SHOWN


def test_where_not() -> None:
    guessing = {**CALM, **ECE, "accuracy": (0.25, 0.20, 0.30)}
    sure = EvaluatedSet("law/test", True, 250, (5,), 1.609, 0.25, Interval(0.2, 0.15, 0.25), "law")
    base = [*rows("home/test", {"accuracy": (0.22, 0.17, 0.27)}, "base"), *rows("law/test", guessing, "base")]
    found = results(
        rows("home/test", {**CALM, **ECE}), rows("law/test", guessing), base, apart("law/test", {"entropy": NO})
    )
    finding = story.where_not(found, [HOME, sure])
    assert finding.verdict == "On 1 of 2 sets shown here there is a reason not to."
    assert finding.points == (
        "law: not shown to be better than a guess; training is not shown to help; too sure, by 20 points; "
        "nothing clearly warns that it is unfamiliar.",
        story.ALWAYS,
    )
    assert story.where_not(found, [HOME]).verdict.startswith("No set shown here gives a reason not to")


# Ten questions, of confidence 0.95, 0.85 ... 0.55, 0.5, 0.45 ... 0.3: the surest six are right.
SURE = np.array([0.95, 0.85, 0.75, 0.65, 0.55, 0.50, 0.45, 0.40, 0.35, 0.30])


def ten(right: int, name: str = "home/test") -> Predictions:
    """The first choice has the confidence, and is the right one in the first `right` questions."""
    rest = (1.0 - SURE)[:, None] / 9.0
    probs = np.concatenate([SURE[:, None], np.repeat(rest, 9, axis=1)], axis=1)[None]
    return replace(
        answers(name, seed=0, n=10, sizes=(10,), members=1),
        log_probs=np.log(probs),
        targets=np.where(np.arange(10) < right, 0, 1),
    )


SEPARATES: Numbers = {
    "error_auroc_confidence": (0.9, 0.8, 1.0),
    "selective_accuracy_50_confidence": (1.0, 0.9, 1.0),
    "selective_accuracy_80_confidence": (0.75, 0.6, 0.9),
}


def test_hand_over_below_a_confidence() -> None:
    told = handover.tell(results(rows("home/test", SEPARATES)), HOME, ten(6), [(AWAY, ten(2, "away/test"))])
    assert told.verdict == (
        "Below 55% sure: it then answers 50% of the questions and is right on 100% of them, not 60%."
    )
    assert told.points[0] == (
        "Answering only when at least 55% sure, it answers 50% and is right on 100% (90% to 100%) of these; a person "
        "decides the rest."
    )
    assert (
        told.points[1]
        == "Handing over only what it is less than 40% sure of (the last 20%): right on 75% (60% to 90%)."
    )
    assert (
        told.points[2] == "Out of domain the same threshold gives: away answers 50%, 40% (12% to 77%) of these right."
    )
    assert "in 90% (80% to 100%) of cases" in told.more[0]


def test_who_is_often_right_hands_over_a_fifth() -> None:
    told = handover.tell(results(rows("home/test", SEPARATES)), HOME, ten(8), [])
    assert told.verdict.startswith("Below 40% sure: it then answers 80% of the questions")


@pytest.mark.parametrize("auroc", [(0.55, 0.45, 0.65), (0.4, 0.35, 0.45)])
def test_confidence_that_does_not_separate_buys_nothing(auroc: tuple[float, float, float]) -> None:
    found = results(rows("home/test", {**SEPARATES, "error_auroc_confidence": auroc}))
    told = handover.tell(found, HOME, ten(6), [])
    assert told.verdict.startswith("Its confidence does not help to choose")
    assert "50% is chance" in told.points[0]


def test_nothing_to_choose_between() -> None:
    assert "all right" in handover.tell(results(), HOME, ten(10), []).verdict
    assert "all wrong" in handover.tell(results(), HOME, ten(0), []).verdict
    unknown = replace(ten(5), targets=np.full(10, -1))
    assert handover.tell(results(), HOME, unknown, []).verdict == "Unknown: no answers to compare with."


def costs(threshold: float | None, saving: tuple[float, float, float]) -> list[Row]:
    value = Row("home", "test", "ensemble", 2, "ensemble", "decision_threshold_confidence", threshold, 10)
    others = {"decision_cost_confidence": (0.8, 0.7, 0.9), "decision_saving_confidence": saving}
    return [value, *rows("home/test", others)]


@pytest.mark.parametrize(
    ("threshold", "saving", "verdict", "said"),
    [
        (
            0.6,
            (0.2, 0.1, 0.3),
            "At your costs: below 60% sure, so that it answers 40%.",
            "it saves 0.20 (0.10 to 0.30) a q",
        ),
        (
            0.6,
            (0.0, -0.1, 0.1),
            "At your costs no threshold is shown to save anything.",
            "is not shown to save anything",
        ),
        (0.6, (-0.2, -0.3, -0.1), "At your costs no threshold is shown to save anything.", "costs 0.20 (0.10 to 0.30)"),
        (None, (0.0, 0.0, 0.0), "At your costs: always.", "is not shown to save"),
        (0.1, (0.0, 0.0, 0.0), "At your costs: never.", "is not shown to save"),
    ],
)
def test_hand_over_at_the_users_costs(
    threshold: float | None, saving: tuple[float, float, float], verdict: str, said: str
) -> None:
    told = handover.tell(results(rows("home/test", SEPARATES), costs(threshold, saving)), HOME, ten(6), [])
    assert told.verdict.startswith(verdict)
    assert any(said in point for point in told.points)
    assert not any("No costs were given" in point for point in told.more)


def test_numbers_in_words() -> None:
    assert spoken(Interval(-0.004, -0.106, 0.09), ".2f") == "0.00 (−0.11 to 0.09)"
    assert [probability(p) for p in (0.0001, 0.0311, 0.4)] == ["p < 0.001", "p = 0.031", "p = 0.40"]
