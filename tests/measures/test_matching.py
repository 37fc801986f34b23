"""Columns dropped at analysis are those that asking again with fewer choices drops, and what stays is normalised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from populations import EPS, any_predictions, from_probs, log_softmax, random_predictions, rounding

from ripieno.data.matching import drop_choices, match_questions
from ripieno.data.question import Question
from ripieno.measures.matching import match_choices
from ripieno.predictions import Predictions


def questions_of(p: Predictions) -> list[Question]:
    """The questions that were answered; a choice's text is its column."""
    return [
        Question(question, "?", tuple(str(k) for k in range(size)), None if target < 0 else target)
        for question, size, target in zip(p.question_ids, p.mask.sum(axis=1), p.targets.tolist(), strict=True)
    ]


def with_all(p: Predictions, seed: int = 0) -> Predictions:
    """Fill every optional array with values that are all different."""
    rng, (M, N, K) = np.random.default_rng(seed), p.log_probs.shape
    return replace(
        p,
        scores=p.log_probs - 3.0,
        tokens=np.arange(N * K).reshape(N, K),
        bytes=1000 + np.arange(N * K).reshape(N, K),
        unconditional=rng.normal(size=(M, N, K)),
        subjects=tuple(f"s{n}" for n in range(N)),
    )


@given(any_predictions(), st.integers(2, 6), st.integers(0, 9))
def test_the_choices_dropped_are_those_of_the_questions_asked_again(p: Predictions, choices: int, seed: int) -> None:
    p = with_all(p)
    asked = {question.id: question for question in questions_of(p)}
    matched = match_questions(list(asked.values()), choices, seed)
    found = match_choices(p, choices, seed)
    assert found.question_ids == tuple(question.id for question in matched.questions)
    assert found.choices_kept == choices
    left_out = {"fewer_choices": matched.fewer_choices, "no_answer": matched.no_answer}
    assert found.metadata["choices_left_out"] == left_out
    assert found.mask.shape == (len(matched.questions), choices)
    assert found.mask.all()
    for n, question in enumerate(matched.questions):
        old = p.question_ids.index(question.id)
        kept = [int(text) for text in question.choices]
        assert found.targets[n] == (-1 if question.answer is None else question.answer)
        assert found.subjects[n] == p.subjects[old]
        for name in ("scores", "unconditional"):
            assert np.array_equal(getattr(found, name)[:, n], getattr(p, name)[:, old][:, kept])
        for name in ("tokens", "bytes"):
            assert np.array_equal(getattr(found, name)[n], getattr(p, name)[old, kept])
        if len(kept) == p.mask[old].sum():
            assert np.array_equal(found.log_probs[:, n], p.log_probs[:, old, : len(kept)])
    # Ratios of probabilities stay, and they sum to one: K terms of size one at most.
    assert found.probs.sum(axis=-1) == pytest.approx(1.0, abs=rounding(choices, 1.0))
    assert not np.isnan(found.log_probs).any()


def test_renormalised_is_what_the_scores_alone_would_have_given() -> None:
    """The scores of a template that lists no choices do not depend on the other choices."""
    M, N, K, k = 3, 40, 6, 4
    rng = np.random.default_rng(0)
    scores, mask = rng.normal(size=(M, N, K)), np.ones((N, K), dtype=bool)
    targets = rng.integers(0, K, size=N)
    ids = tuple(f"q{n}" for n in range(N))
    p = Predictions(log_softmax(scores, mask), mask, ids, targets, (0, 1, 2))
    found = match_choices(p, k, 5)
    kept = np.array([[int(c) for c in drop_choices(q, k, 5).choices] for q in questions_of(p)])
    truth = log_softmax(np.take_along_axis(scores, np.broadcast_to(kept, (M, N, k)), axis=-1), np.ones((N, k), bool))
    size = np.abs(p.log_probs).max() + np.abs(truth).max()
    np.testing.assert_allclose(found.log_probs, truth, atol=rounding(K + k, float(size)), rtol=0)


def test_as_many_choices_as_there_are_change_nothing() -> None:
    p = with_all(random_predictions(2, 30, 5))
    p = p.select(p.mask.all(axis=1))
    assert len(p.question_ids) > 3
    found = match_choices(p, 5, 0)
    for name in ("log_probs", "mask", "targets", "scores", "tokens", "bytes", "unconditional"):
        assert np.array_equal(getattr(found, name), getattr(p, name)), name


def test_by_hand() -> None:
    """Of probabilities .5, .2, .3 one wrong choice goes; a member that gave the kept ones nothing answers uniformly."""
    log_probs = np.log(np.array([[[0.5, 0.2, 0.3]], [[0.5, 0.2, 0.3]]]))
    question = Question("q", "?", ("0", "1", "2"), 1)
    kept = [int(text) for text in drop_choices(question, 2, 0).choices]
    [gone] = {0, 1, 2} - set(kept)
    log_probs[1, 0] = [0.0 if k == gone else -np.inf for k in range(3)]
    p = Predictions(log_probs, np.ones((1, 3), dtype=bool), ("q",), np.array([1]), (0, 1))
    found = match_choices(p, 2, 0)
    expected = np.array([0.5, 0.2, 0.3])[kept]
    assert found.probs[0, 0] == pytest.approx(expected / expected.sum(), abs=10 * EPS)
    assert found.probs[1, 0].tolist() == [0.5, 0.5]
    assert found.targets.tolist() == [kept.index(1)]


def test_dropped_letters_join_the_mass_outside() -> None:
    whole = np.log(np.array([[[0.4, 0.2, 0.1]]]))  # of the vocabulary: 0.3 lies outside
    mask = np.ones((1, 3), dtype=bool)
    p = Predictions(
        log_softmax(whole, mask), mask, ("q",), np.array([0]), (0,), scores=whole, outside_mass=np.array([[0.3]])
    )
    found = match_choices(p, 2, 0)
    assert found.scores is not None
    assert found.outside_mass is not None
    assert found.outside_mass[0, 0] == pytest.approx(1 - np.exp(found.scores).sum(), abs=10 * EPS)
    assert found.outside_mass[0, 0] > 0.35
    assert match_choices(p, 3, 0).outside_mass is not None
    assert match_choices(replace(p, scores=None), 2, 0).outside_mass is None


def test_absent_choices_between_the_others_are_never_kept() -> None:
    """Of choices 0, 2 and 3 two stay, the right one among them: the draw's 0, 1 and 2 are places among those."""
    probs = np.array([[[0.1, 0.0, 0.1, 0.8], [0.25, 0.25, 0.25, 0.25]]])
    mask = np.array([[True, False, True, True], [True, True, True, True]])
    p = with_all(from_probs(probs, [3, 0], mask=mask))
    for choices in (2, 3):
        found = match_choices(p, choices, 0)
        assert found.mask.all()
        assert found.targets[0] == choices - 1  # the right one is the last of its choices
        assert found.probs.sum(axis=-1) == pytest.approx(1.0, abs=rounding(choices, 1.0))
        assert found.probs[0, 0, -1] == pytest.approx(0.8 / (0.7 + 0.1 * choices), abs=rounding(choices, 1.0))
        assert found.tokens is not None
        assert 1 not in found.tokens[0]
    assert match_choices(p, 3, 0).tokens[0].tolist() == [0, 2, 3]  # type: ignore[index]
    assert match_choices(p, 4, 0).question_ids == ("q1",)


def test_a_target_that_is_no_choice_is_refused() -> None:
    p = from_probs([[[0.2, 0.0, 0.8]]], [1], mask=np.array([[True, False, True]]))
    with pytest.raises(ValueError, match="question 'q0': target 1 is none of its choices"):
        match_choices(p, 2, 0)


def test_fixed_letters_are_left_out_where_letters_changed() -> None:
    p = random_predictions(2, 9, 4)
    p = replace(p, letter_log_probs=np.log(np.full((2, 9, 5), 0.1)))
    assert match_choices(p, 2, 0).letter_log_probs is None
    whole = p.select(p.mask.sum(axis=1) == 4)
    found = match_choices(whole, 4, 0)
    assert found.letter_log_probs is not None
    assert np.array_equal(found.letter_log_probs, whole.letter_log_probs)  # type: ignore[arg-type]


def test_none_may_be_left() -> None:
    p = random_predictions(2, 5, 4)
    found = match_choices(p, 9, 0)
    assert found.log_probs.shape == (2, 0, 9)
    assert found.metadata["choices_left_out"] == {"fewer_choices": 5, "no_answer": 0}


def test_one_choice_is_no_question() -> None:
    with pytest.raises(ValueError, match="2 at least, not 1"):
        match_choices(random_predictions(2, 5, 4), 1, 0)
