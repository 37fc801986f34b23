import math

import numpy as np
import pytest
from populations import EPS, random_predictions, rounding

from ripieno import measures


def test_by_hand():
    probs = np.array([[0.7, 0.3, 0.0], [0.3, 0.5, 0.2]])
    targets = np.array([0, 2])
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    assert measures.correct(probs, targets).tolist() == [1.0, 0.0]
    assert measures.nll(log_probs, targets) == pytest.approx([-math.log(0.7), -math.log(0.2)], rel=2 * EPS)
    # (.3, .3, 0) and (.3, .5, .8)
    assert measures.brier(probs, targets) == pytest.approx([0.18, 0.98], abs=rounding(3, 1.0))


def test_each_member_by_itself():
    p = random_predictions(3, 20, 5)
    for of in (measures.correct, measures.brier):
        assert np.array_equal(of(p.probs, p.targets), [of(p.probs[m], p.targets) for m in range(3)])
    assert np.array_equal(measures.nll(p.log_probs, p.targets), [measures.nll(m, p.targets) for m in p.log_probs])


def test_the_lowest_index_wins_a_tie():
    assert measures.correct(np.array([[0.4, 0.4, 0.2]] * 2), np.array([0, 1])).tolist() == [1.0, 0.0]


def test_exact_zero_and_one():
    log_probs = np.array([[0.0, -np.inf]] * 2)
    loss = measures.nll(log_probs, np.array([0, 1]))
    assert loss.tolist() == [0.0, np.inf]
    assert not np.signbit(loss[0])
    assert measures.brier(np.exp(log_probs), np.array([0, 1])).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("choices", [2, 3, 26])
def test_uniform_guess(choices):
    K = choices
    probs = np.full((1, K), 1 / K)
    assert measures.brier(probs, np.array([0])) == pytest.approx(1 - 1 / K, abs=rounding(K, 1.0))


@pytest.mark.parametrize("target", [-1, 2])
def test_unknown_answers_are_an_error(target):
    for of in (measures.correct, measures.nll, measures.brier):
        with pytest.raises(ValueError, match=f"target {target} of question 1 is none of its choices"):
            of(np.full((2, 2), 0.5), np.array([0, target]))
