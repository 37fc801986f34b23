import math

import numpy as np
import pytest
from populations import EPS, rounding
from scipy import stats

from ripieno import measures
from ripieno.measures import bootstrap


def test_the_same_call_gives_the_same_bytes():
    values = np.random.default_rng(0).normal(size=(2, 40))
    first = bootstrap.resampled_means(values, seed=3)
    assert first.tobytes() == bootstrap.resampled_means(values, seed=3).tobytes()
    assert first.tobytes() != bootstrap.resampled_means(values, seed=4).tobytes()
    assert bootstrap.generator(0, "bootstrap").random() != bootstrap.generator(0, "ece_null").random()


def test_blocks_change_no_draw(monkeypatch):
    values = np.random.default_rng(0).normal(size=(2, 40))
    whole = bootstrap.resampled_means(values, resamples=100)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 7 * 40)
    assert bootstrap.resampled_means(values, resamples=100) == pytest.approx(whole, abs=rounding(40, 4.0))


def test_measures_of_the_same_questions_are_drawn_together():
    values = np.random.default_rng(0).normal(size=40)
    means = bootstrap.resampled_means(np.array([values, 1 - values]), resamples=50)
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


def test_equal_values_have_no_width():
    low, high = measures.interval(np.full(30, 0.1))
    assert (low, high) == pytest.approx((0.1, 0.1), abs=rounding(30, 0.1))
    assert measures.interval(np.ones(30)) == (1.0, 1.0)
    assert measures.interval(np.array([0.3])) == pytest.approx((0.3, 0.3), abs=EPS)


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.inf])])
def test_what_has_no_interval_is_an_error(values):
    with pytest.raises(ValueError, match=r"no question|not finite"):
        measures.interval(values)
