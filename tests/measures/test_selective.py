import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import EPS, rounding

from ripieno.measures import ranking, selective

SINGLE = {
    "error_auroc": ranking.auroc,
    "error_aupr": ranking.aupr,
    "aurc": selective.aurc,
    "eaurc": selective.excess_aurc,
    "augrc": selective.augrc,
    "prr": selective.prediction_rejection_ratio,
}
UNDEFINED = {"error_auroc", "error_aupr", "prr"}


def area_rounding(number):
    """Bound the error of an AURC of N questions.

    Each of its at most N ties takes the difference of two harmonic numbers, sums of N terms, times |E - C r| <= N;
    the whole is divided by N. Then come the terms themselves, which add up to 2 N at most.
    """
    N = number
    return 2 * N * rounding(N, 1 + math.log(N)) + rounding(N, 2.0)


@st.composite
def questions(draw, most=7, least=1):
    N = draw(st.integers(least, most))
    uncertainty = draw(st.lists(st.sampled_from([-2.0, 0.0, 0.25, 1.0]), min_size=N, max_size=N))
    wrong = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=N, max_size=N))
    return np.array(uncertainty), np.array(wrong)


def mean_over_orders(uncertainty, wrong, of):
    """Return the exact mean of a measure over all orders of the tied; `of` takes 0s and 1s, the most certain first."""
    groups = [wrong[uncertainty == u].astype(int).tolist() for u in np.unique(uncertainty)]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    values = [of(list(itertools.chain(*order))) for order in orders]
    return sum(values) / len(values)


def aurc_of(order):
    return sum(Fraction(sum(order[:i]), i) for i in range(1, len(order) + 1)) / len(order)


def augrc_of(order):
    N = len(order)
    errors = [sum(order[:i]) for i in range(N + 1)]
    return sum(Fraction(a + b, 2 * N * N) for a, b in itertools.pairwise(errors))


@settings(max_examples=60)
@given(questions())
def test_ties_are_the_mean_over_all_their_orders(of):
    uncertainty, wrong = of
    N = len(wrong)
    perfect = aurc_of(sorted(wrong.astype(int).tolist()))
    exact = mean_over_orders(uncertainty, wrong, aurc_of)
    assert selective.aurc(uncertainty, wrong) == pytest.approx(float(exact), abs=area_rounding(N))
    excess = selective.excess_aurc(uncertainty, wrong)
    assert excess == pytest.approx(float(exact - perfect), abs=2 * area_rounding(N))
    assert excess >= 0.0
    exact = mean_over_orders(uncertainty, wrong, augrc_of)
    assert selective.augrc(uncertainty, wrong) == pytest.approx(float(exact), abs=2 * EPS)
    for percent in (1, 20, 50, 80, 90, 95, 100):
        k = math.ceil(Fraction(percent * N, 100))
        exact = mean_over_orders(uncertainty, wrong, lambda order, k=k: 1 - Fraction(sum(order[:k]), k))
        value = selective.selective_accuracy(uncertainty, wrong, percent / 100)
        assert value == pytest.approx(float(exact), abs=rounding(4, 2.0))


def test_by_hand():
    uncertainty, wrong = np.array([0.4, 0.1, 0.3, 0.2]), np.array([1.0, 0.0, 0.0, 1.0])
    # Right, wrong, right, wrong: error rates 0, 1/2, 1/3, 1/2; the perfect order's 0, 0, 1/3, 1/2.
    assert selective.aurc(uncertainty, wrong) == pytest.approx(4 / 12, abs=area_rounding(4))
    assert selective.excess_aurc(uncertainty, wrong) == pytest.approx(1 / 8, abs=2 * area_rounding(4))
    assert selective.augrc(uncertainty, wrong) == (0 + 0.5 + 1 + 1.5) / 16
    # r = 1/2: (1/2 - 1/3) / (1/2 - 5/24).
    room = 7 / 24
    ratio = selective.prediction_rejection_ratio(uncertainty, wrong)
    assert ratio == pytest.approx((1 / 6) / room, abs=2 * area_rounding(4) / room)
    assert selective.selective_accuracy(uncertainty, wrong, 0.75) == pytest.approx(2 / 3, abs=rounding(4, 2.0))
    curve = selective.risk_coverage(uncertainty, wrong)
    assert curve.threshold.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk.tolist() == [0.0, 0.5, 1 / 3, 0.5]
    tied = selective.risk_coverage(np.array([2.0, 1.0, 2.0]), np.array([1.0, 0.0, 0.0]))
    assert (tied.threshold.tolist(), tied.risk.tolist()) == ([1.0, 2.0], [0.0, 1 / 3])


@given(questions(most=20))
def test_augrc_is_the_area_under_its_curve_and_its_closed_form(of):
    uncertainty, wrong = of
    N, r = len(wrong), wrong.mean()
    value = selective.augrc(uncertainty, wrong)
    curve = selective.risk_coverage(uncertainty, wrong)
    let_through = np.append(0.0, curve.coverage * curve.risk)
    area = np.trapezoid(let_through, np.append(0.0, curve.coverage))
    assert value == pytest.approx(area, abs=rounding(N, 1.0))
    if 0 < r < 1:
        auroc = ranking.auroc(uncertainty, wrong == 1)
        assert value == pytest.approx((1 - auroc) * (1 - r) * r + r**2 / 2, abs=rounding(4, 1.0))
        # The prediction-rejection ratio of this area, Malinin's, is 2 AUROC - 1.
        room = r / 2 - r**2 / 2
        assert (r / 2 - value) / room == pytest.approx(2 * auroc - 1, abs=rounding(4, 1.0) / room)


@given(questions(most=6), st.data())
def test_a_weight_is_a_number_of_repeats(of, data):
    uncertainty, wrong = of
    N = len(wrong)
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=4 * N, max_size=4 * N)), dtype=np.float64)
    weights = weights.reshape(2, 2, N)
    bundle = selective.selective_measures(uncertainty, wrong, weights)
    for row in np.ndindex(2, 2):
        repeats = weights[row].astype(int)
        if not repeats.any():
            assert all(np.isnan(values[row]) for values in bundle.values())
            continue
        repeated = selective.selective_measures(np.repeat(uncertainty, repeats), np.repeat(wrong, repeats))
        for name, values in bundle.items():
            assert values.shape == (2, 2)
            # The ratio divides two areas' errors by a room of at least 1 / (3 N)^2: one error above one right answer.
            slack = 4 * area_rounding(3 * N) * ((3 * N) ** 2 if name == "prr" else 1)
            assert values[row] == pytest.approx(repeated[name], abs=slack, nan_ok=True), name


@given(questions(most=12), st.data())
def test_the_bundle_is_the_single_measures(of, data):
    uncertainty, wrong = of
    N = len(wrong)
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=2 * N, max_size=2 * N)), dtype=np.float64)
    for drawn in (None, weights.reshape(2, N)):
        bundle = selective.selective_measures(uncertainty, wrong, drawn)
        names = [*SINGLE, *(f"selective_accuracy_{percent}" for percent in (50, 80, 90, 95))]
        assert list(bundle) == names
        for name, measure in SINGLE.items():
            if drawn is None and name in UNDEFINED and wrong.min() == wrong.max():
                assert np.isnan(bundle[name])
                with pytest.raises(ValueError, match=r"all are wrong|are positive"):
                    measure(uncertainty, wrong)
            else:
                assert np.array_equal(bundle[name], measure(uncertainty, wrong, drawn), equal_nan=True), name
        for percent in (50, 80, 90, 95):
            value = selective.selective_accuracy(uncertainty, wrong, percent / 100, drawn)
            assert np.array_equal(bundle[f"selective_accuracy_{percent}"], value, equal_nan=True)


@given(questions(most=12), st.randoms(use_true_random=False))
def test_neither_the_order_of_questions_nor_the_scale_of_the_uncertainty_counts(of, random):
    uncertainty, wrong = of
    order = list(range(len(wrong)))
    random.shuffle(order)
    bundle = selective.selective_measures(uncertainty, wrong)
    for other in (
        selective.selective_measures(uncertainty[order], wrong[order]),
        selective.selective_measures(np.exp(uncertainty) - 7, wrong),
    ):
        assert all(np.array_equal(other[name], bundle[name], equal_nan=True) for name in bundle)


@pytest.mark.parametrize("errors", [1, 3, 9])
def test_ties_everywhere_say_nothing(errors):
    wrong = (np.arange(10) < errors).astype(np.float64)
    r = errors / 10
    bundle = selective.selective_measures(np.full(10, 0.7), wrong)
    assert (bundle["error_auroc"], bundle["aurc"], bundle["augrc"]) == (0.5, r, r / 2)
    assert bundle["error_aupr"] == pytest.approx(r, abs=rounding(2, 1.0))
    # r - AURC* is at least a/N e/N.
    assert bundle["prr"] == pytest.approx(0.0, abs=3 * area_rounding(10) / (r * (1 - r)))
    for percent in (50, 80, 90, 95):
        assert bundle[f"selective_accuracy_{percent}"] == pytest.approx(1 - r, abs=rounding(4, 2.0))


def test_perfect_and_reversed_order():
    N, errors = 40, 10
    uncertainty, wrong = np.arange(N) * 1.0, (np.arange(N) >= N - errors).astype(np.float64)
    r = errors / N
    best = selective.selective_measures(uncertainty, wrong)
    assert (best["error_auroc"], best["error_aupr"], best["augrc"]) == (1.0, 1.0, r**2 / 2)
    assert best["eaurc"] == pytest.approx(0.0, abs=2 * area_rounding(N))
    assert best["prr"] == pytest.approx(1.0, abs=2 * area_rounding(N) / (r * (1 - r)))
    assert [best[f"selective_accuracy_{percent}"] for percent in (50, 80, 90, 95)] == pytest.approx(
        [1.0, 30 / 32, 30 / 36, 30 / 38], abs=rounding(4, 2.0)
    )
    worst = selective.selective_measures(-uncertainty, wrong)
    assert worst["error_auroc"] == 0.0
    area = (errors + sum(Fraction(errors, i) for i in range(errors + 1, N + 1))) / N
    assert worst["aurc"] == pytest.approx(float(area), abs=area_rounding(N))
    assert worst["augrc"] == r * (1 - r) + r**2 / 2
    assert worst["selective_accuracy_50"] == pytest.approx(0.5, abs=rounding(4, 2.0))
    assert worst["prr"] < 0.0


@pytest.mark.parametrize("errors", [1, 2, 4])
def test_a_random_order_has_the_error_rate_as_its_aurc(errors):
    N = 6
    uncertainty = np.arange(N) * 1.0
    every = [np.isin(np.arange(N), where).astype(float) for where in itertools.combinations(range(N), errors)]
    bundles = [selective.selective_measures(uncertainty, wrong) for wrong in every]
    mean = {name: np.mean([bundle[name] for bundle in bundles]) for name in bundles[0]}
    r = errors / N
    assert mean["aurc"] == pytest.approx(r, abs=area_rounding(N))
    assert mean["augrc"] == pytest.approx(r / 2, abs=rounding(len(every), 1.0))
    assert mean["prr"] == pytest.approx(0.0, abs=3 * area_rounding(N) / (r * (1 - r)))
    assert mean["error_auroc"] == pytest.approx(0.5, abs=rounding(len(every), 1.0))
    assert mean["selective_accuracy_50"] == pytest.approx(1 - r, abs=rounding(len(every), 2.0))


@pytest.mark.parametrize("all_of", [0.0, 1.0])
def test_all_right_and_all_wrong_have_what_is_defined(all_of):
    bundle = selective.selective_measures(np.array([0.1, 0.2, 0.2]), np.full(3, all_of))
    assert {name for name, value in bundle.items() if np.isnan(value)} == UNDEFINED
    assert (bundle["aurc"], bundle["eaurc"], bundle["augrc"]) == (all_of, 0.0, all_of / 2)
    assert {bundle[f"selective_accuracy_{percent}"] for percent in (50, 80, 90, 95)} == {1 - all_of}
    one = selective.selective_measures(np.array([0.1]), np.array([all_of]))
    assert (one["aurc"], one["augrc"], one["selective_accuracy_50"]) == (all_of, all_of / 2, 1 - all_of)


def test_coverage_is_a_whole_number_of_questions():
    uncertainty, wrong = np.arange(100.0), (np.arange(100) >= 55).astype(np.float64)
    assert selective.selective_accuracy(uncertainty, wrong, 0.55) == 1.0
    # 55.1 questions are 56, one of them wrong.
    value = selective.selective_accuracy(uncertainty, wrong, 0.551)
    assert value == pytest.approx(55 / 56, abs=rounding(4, 2.0))
    for coverage in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="coverage"):
            selective.selective_accuracy(uncertainty, wrong, coverage)


def test_many_questions_approach_the_integrals():
    # The perfect order's AURC tends to r + (1 - r) ln(1 - r) (Geifman et al. 2018): the sum is within 1/N of it.
    N, r = 20_000, 0.3
    uncertainty, wrong = np.arange(N) * 1.0, (np.arange(N) >= (1 - r) * N).astype(np.float64)
    value = selective.aurc(uncertainty, wrong)
    assert value == pytest.approx(r + (1 - r) * math.log(1 - r), abs=1 / N)


def cost_of(threshold, uncertainty, wrong, error_cost, handover_cost):
    return np.where(uncertainty <= threshold, wrong * error_cost, handover_cost).mean()


COSTS = st.sampled_from([(1.0, 0.25), (3.0, 1.0), (1.0, 1.0), (0.5, 4.0), (100.0, 0.125)])


@given(questions(most=12), COSTS)
def test_no_threshold_is_cheaper(of, costs):
    uncertainty, wrong = of
    decision = selective.cheapest_threshold(uncertainty, wrong, *costs)
    thresholds = [-math.inf, *np.unique(uncertainty).tolist()]
    every = [cost_of(t, uncertainty, wrong, *costs) for t in thresholds]
    slack = rounding(len(wrong), max(costs))
    assert decision.threshold in thresholds
    assert decision.cost == pytest.approx(min(every), abs=slack)
    assert cost_of(decision.threshold, uncertainty, wrong, *costs) == pytest.approx(decision.cost, abs=slack)
    # Among equally cheap ones it is the highest.
    assert all(
        cost > decision.cost - slack for t, cost in zip(thresholds, every, strict=True) if t > decision.threshold
    )
    answered = uncertainty <= decision.threshold
    assert decision.coverage == answered.mean()
    assert decision.errors == (answered * wrong).mean()
    assert decision.cost_of_answering_all == pytest.approx(wrong.mean() * costs[0], abs=slack)
    assert decision.cost_of_handing_over_all == pytest.approx(costs[1], abs=slack)
    baseline = min(decision.cost_of_answering_all, decision.cost_of_handing_over_all)
    assert decision.saving == baseline - decision.cost >= 0.0


def test_the_threshold_of_calibrated_probabilities_is_the_ratio_of_costs():
    # Chow 1970: answer where P(wrong) <= price of a hand-over / price of an error. Ten questions at each probability.
    p = np.arange(11) / 10
    uncertainty = np.repeat(p, 10)
    wrong = np.concatenate([np.arange(10) < round(10 * x) for x in p]).astype(np.float64)
    decision = selective.cheapest_threshold(uncertainty, wrong, 20.0, 7.0)
    # Up to .3 < .35: 6 errors among 40, and 70 handed over.
    assert (decision.threshold, decision.coverage, decision.errors) == (0.3, 40 / 110, 6 / 110)
    assert decision.cost == pytest.approx((6 * 20 + 70 * 7) / 110, abs=rounding(3, 10.0))
    assert decision.saving == pytest.approx(7 - decision.cost, abs=rounding(3, 10.0))
    # With equal prices of .5 on both sides the last of equals: at P(wrong) = 1/2 answering costs the same.
    assert selective.cheapest_threshold(uncertainty, wrong, 2.0, 1.0).threshold == 0.5
    assert selective.cheapest_threshold(uncertainty, wrong, 1.0, 9.0).coverage == 1.0


def test_nothing_is_answered_where_every_answer_is_wrong():
    decision = selective.cheapest_threshold(np.array([0.1, 0.2]), np.ones(2), 3.0, 1.0)
    assert decision == selective.Decision(
        threshold=-math.inf,
        coverage=0.0,
        errors=0.0,
        cost=1.0,
        cost_of_answering_all=3.0,
        cost_of_handing_over_all=1.0,
        saving=0.0,
    )


@given(questions(least=2), COSTS, st.integers(7, 20))
def test_each_question_alone_in_its_fold_is_decided_by_all_others(of, costs, folds):
    uncertainty, wrong = of
    values = selective.cross_fitted_costs(uncertainty, wrong, *costs, folds=folds)
    for n in range(len(wrong)):
        others = np.arange(len(wrong)) != n
        threshold = selective.cheapest_threshold(uncertainty[others], wrong[others], *costs).threshold
        assert values[n] == cost_of(threshold, uncertainty[n], wrong[n], *costs)


def test_folds_are_of_one_size_and_decided_without_themselves():
    # One error, at the lowest uncertainty: only its own fold, chosen without it, answers everything.
    N, folds = 20, 5
    uncertainty, wrong = np.arange(N) * 1.0, (np.arange(N) == 0).astype(np.float64)
    values = selective.cross_fitted_costs(uncertainty, wrong, 100.0, 1.0, folds=folds)
    # The highest uncertainty of the others may be below the fold's own highest: those are handed over.
    assert values[0] == 100.0
    assert (values[1:] == 0.0).sum() <= N // folds - 1
    assert (values[1:] == 1.0).sum() >= N - N // folds


def test_cross_fitted_costs_are_honest_where_the_uncertainty_is_noise():
    # Errors of probability 1/2 at twice the price of a hand-over: whatever is answered, a question costs 1 on average.
    trials, N = 400, 40
    rng = np.random.default_rng(0)
    chosen, honest = [], []
    for trial in range(trials):
        uncertainty, wrong = rng.random(N), rng.integers(0, 2, size=N).astype(np.float64)
        chosen.append(selective.cheapest_threshold(uncertainty, wrong, 2.0, 1.0).cost)
        honest.append(selective.cross_fitted_costs(uncertainty, wrong, 2.0, 1.0, seed=trial).mean())
    error = np.std(honest) / math.sqrt(trials)
    assert np.mean(honest) == pytest.approx(1.0, abs=4 * error)
    assert np.mean(chosen) < 1.0 - 10 * error


def test_the_deal_follows_from_the_seed_and_no_question_has_a_place_of_its_own():
    rng = np.random.default_rng(0)
    uncertainty = rng.integers(0, 6, size=12) * 1.0
    wrong = (rng.random(12) < uncertainty / 6).astype(np.float64)

    def costs(order, seed):
        values = np.empty(12)
        values[order] = selective.cross_fitted_costs(uncertainty[order], wrong[order], 2.0, 1.0, folds=3, seed=seed)
        return values

    kept, turned = np.arange(12), np.arange(12)[::-1]
    assert np.array_equal(costs(kept, 3), costs(kept, 3))
    deals = 600
    first = np.array([costs(kept, seed) for seed in range(deals)])
    second = np.array([costs(turned, seed + deals) for seed in range(deals)])
    assert len(np.unique(first, axis=0)) > 1
    error = np.sqrt((first.mean(axis=1).var() + second.mean(axis=1).var()) / deals)
    assert first.mean() == pytest.approx(second.mean(), abs=4 * error)


def test_wrong_calls_are_errors():
    uncertainty, wrong = np.array([0.1, 0.2, 0.3]), np.array([0.0, 1.0, 0.0])
    for of in (selective.cheapest_threshold, selective.cross_fitted_costs):
        for bad in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="the cost of an error"):
                of(uncertainty, wrong, bad, 1.0)
            with pytest.raises(ValueError, match="the cost of a hand-over"):
                of(uncertainty, wrong, 1.0, bad)
    with pytest.raises(ValueError, match="leave none"):
        selective.cross_fitted_costs(uncertainty, wrong, 1.0, 1.0, folds=1)
    with pytest.raises(ValueError, match="leave none"):
        selective.cross_fitted_costs(uncertainty[:1], wrong[:1], 1.0, 1.0)
    for of in (selective.aurc, selective.selective_measures, selective.risk_coverage):
        with pytest.raises(ValueError, match="at least one question"):
            of(np.array([]), np.array([]))
        with pytest.raises(ValueError, match="a 1 or a 0"):
            of(uncertainty, wrong / 2)
        with pytest.raises(ValueError, match="do not fit"):
            of(uncertainty, wrong[:2])
    with pytest.raises(ValueError, match="a whole number"):
        selective.aurc(uncertainty, wrong, np.full((2, 3), 1 / 3))
