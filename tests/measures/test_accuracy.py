import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from populations import EPS, random_predictions, rounding

from ripieno import measures
from ripieno.measures.accuracy import macro_f1, recall


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


def test_a_right_choice_a_question_is_needed():
    for of in (measures.correct, measures.nll, measures.brier):
        for targets in ([0], [0, 0]):
            with pytest.raises(ValueError, match="not the same questions"):
                of(np.full((3, 2), 0.5), np.array(targets))


def test_recall_and_macro_f1_by_hand():
    # Label 0: 2 of 3 found, 3 answered; 1: 1 of 2, 2; 2: never right, answered once; 3: neither.
    targets, predicted = np.array([0, 0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 0, 2])
    found = recall(predicted, targets, 4)
    assert found.count.tolist() == [4, 2, 0, 0]
    assert found.value.tolist() == [0.5, 0.5, 0.0, 0.0]
    # F1: 2*2/(3+4), 2*1/(2+2), 0/(1+0); label 3 does not enter.
    assert macro_f1(predicted, targets, 4) == pytest.approx((4 / 7 + 1 / 2 + 0) / 3, abs=rounding(3, 1.0))


@st.composite
def any_labels(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    classes, N = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    label = st.lists(st.integers(0, classes - 1), min_size=N, max_size=N)
    return np.array(draw(label)), np.array(draw(label)), classes


@given(any_labels())
def test_labels_follow_their_definitions(labels):
    predicted, targets, classes = labels
    found = recall(predicted, targets, classes)
    N = len(targets)
    # Weighted by how often each is right, recalls average to the accuracy.
    accuracy = float((predicted == targets).mean())
    assert (found.count * found.value).sum() / N == pytest.approx(accuracy, abs=rounding(N, 1.0))
    f1 = macro_f1(predicted, targets, classes)
    assert (f1 == 1.0) == (accuracy == 1.0)
    assert (f1 == 0.0) == (accuracy == 0.0)
    # Answers and targets take the same part, and labels that never occur none.
    assert f1 == macro_f1(targets, predicted, classes) == macro_f1(predicted, targets, classes + 3)
    harmonic = []
    precision = recall(targets, predicted, classes)
    for c in np.flatnonzero(found.count + precision.count):
        both = found.value[c] + precision.value[c]
        harmonic.append(2 * found.value[c] * precision.value[c] / both if both else 0.0)
    assert f1 == pytest.approx(np.mean(harmonic), abs=rounding(classes, 1.0))


def test_wrong_calls_of_labels():
    for of in (recall, macro_f1):
        with pytest.raises(ValueError, match="not the same questions"):
            of(np.array([0]), np.array([0, 1]), 2)
        with pytest.raises(ValueError, match="answer 2 of question 1 is none of the 2 labels"):
            of(np.array([0, 2]), np.array([0, 1]), 2)
        with pytest.raises(ValueError, match="target -1 of question 0 is none of the 2 labels"):
            of(np.array([0, 1]), np.array([-1, 1]), 2)
    none = np.array([], dtype=np.int64)
    assert recall(none, none, 2).value.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="no question"):
        macro_f1(none, none, 2)
