import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from populations import EPS, rounding

from ripieno.measures import ranking

MEASURES = {
    "auroc": ranking.auroc,
    "aupr": ranking.aupr,
    "fpr95": ranking.fpr_at_tpr,
    "fpr50": lambda *of: ranking.fpr_at_tpr(*of, tpr=0.5),
}


@st.composite
def two_kinds(draw, most=12):
    """Scores with many ties, and at least one question of each kind."""
    N = draw(st.integers(2, most))
    scores = draw(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, -0.0, 0.5, 3.0]), min_size=N, max_size=N))
    positive = [True, False, *draw(st.lists(st.booleans(), min_size=N - 2, max_size=N - 2))]
    return np.array(scores), np.array(positive)


def by_definition(scores, positive):
    """Each measure from its definition, a threshold or a pair at a time, in whole numbers."""
    high, low = scores[positive], scores[~positive]
    pairs = [Fraction(1) if h > n else Fraction(int(h == n), 2) for h, n in itertools.product(high, low)]
    precision, before, fpr = Fraction(0), 0, {}
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found, false = int((high >= threshold).sum()), int((low >= threshold).sum())
        precision += Fraction(found - before, len(high)) * Fraction(found, found + false)
        before = found
        for percent in (50, 95):
            if Fraction(found, len(high)) >= Fraction(percent, 100):
                fpr.setdefault(percent, Fraction(false, len(low)))
    return {"auroc": sum(pairs) / len(pairs), "aupr": precision, "fpr95": fpr[95], "fpr50": fpr[50]}


@given(two_kinds())
def test_every_measure_is_its_definition(of):
    scores, positive = of
    for name, exact in by_definition(scores, positive).items():
        value = MEASURES[name](scores, positive)
        assert value == pytest.approx(float(exact), abs=rounding(len(scores), 1.0)), name


@given(two_kinds(), st.data())
def test_a_weight_is_a_number_of_repeats(of, data):
    scores, positive = of
    N = len(scores)
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=6 * N, max_size=6 * N)), dtype=np.float64)
    weights = weights.reshape(2, 3, N)
    for name, measure in MEASURES.items():
        values = measure(scores, positive, weights)
        assert values.shape == (2, 3)
        for row in np.ndindex(2, 3):
            repeats = weights[row].astype(int)
            repeated = np.repeat(positive, repeats)
            if repeated.all() or not repeated.any():
                assert np.isnan(values[row]), name
                continue
            expected = measure(np.repeat(scores, repeats), repeated)
            assert values[row] == pytest.approx(expected, abs=2 * rounding(3 * N, 1.0)), name


@given(two_kinds(), st.randoms(use_true_random=False))
def test_neither_the_order_of_questions_nor_the_scale_of_scores_counts(of, random):
    scores, positive = of
    order = list(range(len(scores)))
    random.shuffle(order)
    for name, measure in MEASURES.items():
        value = measure(scores, positive)
        assert measure(scores[order], positive[order]) == value, name
        assert measure(np.exp(scores), positive) == value, name


@given(two_kinds())
def test_negating_the_score_or_swapping_the_kinds_turns_the_auroc(of):
    scores, positive = of
    value = ranking.auroc(scores, positive)
    assert ranking.auroc(-scores, positive) == pytest.approx(1 - value, abs=2 * EPS)
    assert ranking.auroc(scores, ~positive) == pytest.approx(1 - value, abs=2 * EPS)


def test_perfect_reversed_and_no_order():
    scores, positive = np.arange(40.0), np.arange(40) >= 30
    perfect = {name: measure(scores, positive) for name, measure in MEASURES.items()}
    assert perfect == {"auroc": 1.0, "aupr": 1.0, "fpr95": 0.0, "fpr50": 0.0}
    # The positive question of rank i comes after 30 negative ones.
    worst = sum(Fraction(i, 30 + i) for i in range(1, 11)) / 10
    assert ranking.auroc(-scores, positive) == 0.0
    assert ranking.aupr(-scores, positive) == pytest.approx(float(worst), abs=rounding(10, 1.0))
    assert ranking.fpr_at_tpr(-scores, positive) == 1.0
    tied = {name: measure(np.ones(40), positive) for name, measure in MEASURES.items()}
    assert tied == {"auroc": 0.5, "aupr": 0.25, "fpr95": 1.0, "fpr50": 1.0}


def test_a_random_order_has_an_auroc_of_one_half():
    scores = np.array([0.0, 1.0, 1.0, 2.0, 3.0])
    every = [np.array(kinds) for kinds in itertools.permutations([True, True, False, False, False])]
    assert np.mean([ranking.auroc(scores, kinds) for kinds in every]) == pytest.approx(0.5, abs=rounding(120, 1.0))


def test_the_threshold_lets_just_enough_positives_through():
    # 20 positive questions, 0 to 19: the threshold for 95% is 1, which 19 of them pass; .5 does not, 1 does.
    scores = np.array([*range(20), 0.5, 1.0, 5.5, 30.0], dtype=np.float64)
    positive = np.arange(24) < 20
    assert ranking.fpr_at_tpr(scores, positive) == 0.75
    assert ranking.fpr_at_tpr(scores, positive, tpr=0.951) == 1.0
    assert ranking.fpr_at_tpr(scores, positive, tpr=1.0) == 1.0
    assert ranking.fpr_at_tpr(scores, positive, tpr=1e-9) == 0.25
    for tpr in (0.0, 1.01, math.nan):
        with pytest.raises(ValueError, match="true positive rate"):
            ranking.fpr_at_tpr(scores, positive, tpr=tpr)


def test_whole_shares_are_not_lifted_by_rounding():
    totals = np.arange(1.0, 1001.0)
    for percent in range(1, 101):
        exact = [max(1, math.ceil(Fraction(percent * total, 100))) for total in range(1, 1001)]
        assert ranking.whole_share(percent / 100, totals).tolist() == exact
    assert ranking.whole_share(0.55, np.float64(100)) == 55 < math.ceil(0.55 * 100)


@given(two_kinds(), st.data())
def test_the_bundle_for_foreign_questions_is_the_single_measures(of, data):
    scores, outside = of
    N = len(scores)
    weights = np.array(data.draw(st.lists(st.integers(0, 2), min_size=2 * N, max_size=2 * N)), dtype=np.float64)
    for drawn in (None, weights.reshape(2, N)):
        parts = (None, None) if drawn is None else (drawn[:, ~outside], drawn[:, outside])
        bundle = ranking.ood_measures(scores[~outside], scores[outside], *parts)
        expected = {
            "ood_auroc": ranking.auroc(scores, outside, drawn),
            "ood_aupr_in": ranking.aupr(-scores, ~outside, drawn),
            "ood_aupr_out": ranking.aupr(scores, outside, drawn),
            "ood_fpr95": ranking.fpr_at_tpr(-scores, ~outside, drawn),
        }
        assert list(bundle) == list(expected)
        for name, values in expected.items():
            assert bundle[name] == pytest.approx(values, abs=2 * rounding(2 * N, 1.0), nan_ok=True), name


def test_fpr95_is_the_share_of_foreign_questions_accepted_with_95_percent_of_the_own():
    # 19 of 20 inside questions are accepted up to an uncertainty of 18, and with them 17.5 and 18, but not 18.5.
    inside, outside = np.arange(20.0), np.array([17.5, 18.0, 18.5, 40.0, 50.0])
    assert ranking.ood_measures(inside, outside)["ood_fpr95"] == 0.4
    # The other convention (outside is positive) accepts at least 95% of 5, all: from 17.5, which 18 and 19 reach.
    assert ranking.fpr_at_tpr(np.append(inside, outside), np.arange(25) >= 20) == 0.1


def test_only_one_of_the_two_sets_may_be_drawn_again():
    inside, outside = np.array([0.0, 2.0]), np.array([1.0, 3.0, 3.0])
    weights = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    values = ranking.ood_measures(inside, outside, None, weights)["ood_auroc"]
    assert values == pytest.approx([5 / 6, 1 / 2, math.nan], abs=EPS, nan_ok=True)


def test_wrong_calls_are_errors():
    scores, positive = np.array([0.0, 1.0, 2.0]), np.array([True, False, True])
    for measure in MEASURES.values():
        with pytest.raises(ValueError, match="3 of 3 questions are positive"):
            measure(scores, np.ones(3, dtype=bool))
        with pytest.raises(ValueError, match="0 of 3 questions are positive"):
            measure(scores, np.zeros(3, dtype=bool))
        with pytest.raises(ValueError, match="question 1 is NaN"):
            measure(np.array([0.0, math.nan, 1.0]), positive)
        with pytest.raises(ValueError, match="at least one question"):
            measure(np.array([]), np.array([], dtype=bool))
        with pytest.raises(ValueError, match="do not fit"):
            measure(scores, positive[:2])
        with pytest.raises(ValueError, match="do not fit"):
            measure(scores, positive, np.ones((2, 4)))
        for weight in (0.5, -1.0, math.nan):
            with pytest.raises(ValueError, match="a whole number"):
                measure(scores, positive, np.array([[1.0, weight, 1.0]]))
    with pytest.raises(ValueError, match="a 1 or a 0"):
        ranking.Ranking.of(scores).tally(np.array([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="2 of 2 questions"):
        ranking.ood_measures(np.array([]), np.ones(2))
