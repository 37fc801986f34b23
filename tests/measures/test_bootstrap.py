import math

import numpy as np
import pytest
from populations import EPS, rounding
from scipy import stats

from ripieno import measures
from ripieno.measures import bootstrap


def test_the_same_call_gives_the_same_bytes():
    values = np.random.default_rng(0).normal(size=(2, 40))
    first = bootstrap.resampled_means(values, bootstrap.draw(40, seed=3))
    assert first.tobytes() == bootstrap.resampled_means(values, bootstrap.draw(40, seed=3)).tobytes()
    assert first.tobytes() != bootstrap.resampled_means(values, bootstrap.draw(40, seed=4)).tobytes()
    assert not np.array_equal(bootstrap.draw(40), bootstrap.draw(40, purpose="other"))
    assert bootstrap.generator(0, "bootstrap").random() != bootstrap.generator(0, "ece_null").random()


def test_blocks_change_no_draw(monkeypatch):
    values = np.random.default_rng(0).normal(size=(2, 40))
    counts = bootstrap.draw(40, resamples=100)
    whole = bootstrap.resampled_means(values, counts)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 7 * 40)
    assert np.array_equal(bootstrap.draw(40, resamples=100), counts)
    assert bootstrap.resampled_means(values, counts) == pytest.approx(whole, abs=rounding(40, 4.0))


def test_measures_of_the_same_questions_are_drawn_together():
    values = np.random.default_rng(0).normal(size=40)
    means = bootstrap.resampled_means(np.array([values, 1 - values]), bootstrap.draw(40, resamples=50))
    assert means.sum(axis=1) == pytest.approx(1.0, abs=rounding(2 * 40, float(np.abs(values).max() + 1)))


def test_the_interval_is_the_normal_one_for_many_questions():
    N, B = 20_000, 1000
    values = np.random.default_rng(0).exponential(size=N)
    error = values.std() / math.sqrt(N)
    low, high = measures.interval(values, resamples=B)
    # The quantile of B draws at level q has standard error sqrt(q (1 - q) / B) / density; four of them.
    slack = 4 * math.sqrt(0.025 * 0.975 / B) / stats.norm.pdf(1.96)
    assert (low - values.mean()) / error == pytest.approx(-1.96, abs=slack)
    assert (high - values.mean()) / error == pytest.approx(1.96, abs=slack)


def test_coverage_of_a_known_mean():
    N, trials = 50, 600
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(trials):
        low, high = measures.interval(rng.normal(size=N), resamples=300, seed=trial)
        covered += low <= 0 <= high
    # The percentile interval of a normal mean is mean +- 1.96 times the standard deviation with divisor N.
    expected = 2 * stats.t.cdf(1.96 * math.sqrt((N - 1) / N), N - 1) - 1
    assert covered / trials == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / trials))


def test_a_paired_interval_leaves_out_what_both_share():
    rng = np.random.default_rng(0)
    hardness = rng.normal(scale=10, size=200)
    a, b = hardness + 0.1, hardness + rng.normal(scale=0.01, size=200)
    low, high = measures.paired_interval(a, b)
    # mean difference .1 with standard error .01 / sqrt(200) = .0007
    assert 0.09 < low < high < 0.11
    with pytest.raises(ValueError, match="not the same questions"):
        measures.paired_interval(a, b[:-1])
    with pytest.raises(ValueError, match="0 resamples"):
        measures.interval(a, resamples=0)


def test_equal_values_have_no_width():
    low, high = measures.interval(np.full(30, 0.1))
    assert (low, high) == pytest.approx((0.1, 0.1), abs=rounding(30, 0.1))
    assert measures.interval(np.ones(30)) == (1.0, 1.0)
    assert measures.interval(np.array([0.3])) == pytest.approx((0.3, 0.3), abs=EPS)


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.inf])])
def test_what_has_no_interval_is_an_error(values):
    with pytest.raises(ValueError, match=r"no question|not finite"):
        measures.interval(values)


def test_questions_of_one_passage_are_drawn_together():
    clusters = np.array(["a", "b", "a", "c", "b", "a"])
    counts = bootstrap.draw(6, clusters=clusters, resamples=200)
    assert np.array_equal(counts[:, [0, 1, 3]], bootstrap.draw(3, resamples=200))
    assert np.array_equal(counts[:, 0], counts[:, 2])
    assert np.array_equal(counts[:, 1], counts[:, 4])


def test_what_is_drawn_are_questions_or_passages():
    assert bootstrap.units(6) == 6
    assert bootstrap.units(6, np.array(["a", "b", "a", "c", "b", "a"])) == 3
    assert bootstrap.units(6, np.zeros(6)) == 1


def test_passages_whose_questions_are_alike_say_as_much_as_one_question_each():
    rng = np.random.default_rng(0)
    of_passages, N, size = rng.normal(size=60), 60, 10
    clusters = np.repeat(np.arange(N), size)
    apart = measures.interval(np.repeat(of_passages, size), clusters=clusters)
    assert apart == pytest.approx(measures.interval(of_passages), abs=rounding(N * size, 4.0))


def test_a_statistic_that_is_undefined_too_often_has_no_interval():
    draws = np.random.default_rng(0).normal(size=(1000, 3))
    draws[:10, 1], draws[:11, 2] = np.nan, np.nan
    low, high = bootstrap.percentiles(draws)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [False, False, True]
    assert (low[1], high[1]) == pytest.approx(np.quantile(draws[10:, 1], [0.025, 0.975]), abs=EPS)


def test_p_values_are_uniform_without_a_difference():
    trials, N = 2000, 60
    rng = np.random.default_rng(0)
    values = rng.normal(size=(trials, N))
    resamples = bootstrap.resampled_means(values, bootstrap.draw(N, resamples=400))
    p = bootstrap.p_value(values.mean(axis=1), resamples, N)
    # The spread of N values is off by a share of about 1 / sqrt(2 N) of itself, which moves p by less than .03.
    assert stats.kstest(p, "uniform").statistic < 1.63 / math.sqrt(trials) + 0.03


def test_p_value_by_hand():
    resamples = np.array([[1.0, 0.0, 2.0, 0.5], [3.0, 0.0, 2.0, -0.5]])
    p = bootstrap.p_value(np.array([2.0, 0.0, 2.0, 0.0]), resamples, 5)
    assert p == pytest.approx([math.erfc(2 / math.sqrt(2)), 1.0, 2.0**-4, 1.0], rel=4 * EPS)


def test_holm_by_hand_and_its_promise():
    assert bootstrap.holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert bootstrap.holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
    trials, R = 4000, 5
    p = np.random.default_rng(0).random((trials, R))
    alarms = np.mean([bootstrap.holm(row).min() < 0.05 for row in p])
    # Independent tests: 1 - .99^5 = .0490 of the trials raise a false alarm.
    assert alarms == pytest.approx(1 - (1 - 0.05 / R) ** R, abs=4 * math.sqrt(0.05 * 0.95 / trials))
