"""Which choices go: wrong ones alone, each as likely as the others, the same wherever and whenever it is drawn."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ripieno.data.matching import drop_choices, kept_choices, match_questions
from ripieno.data.question import Question


@st.composite
def answered(draw: st.DrawFn) -> Question:
    count = draw(st.integers(2, 9))
    answer = draw(st.integers(0, count - 1))
    return Question(draw(st.text(max_size=5)), "?", tuple(f"choice {n}" for n in range(count)), answer, "c", "s")


@given(answered(), st.integers(2, 9), st.integers(0, 99))
def test_the_right_choice_stays_and_the_others_keep_their_order(question: Question, choices: int, seed: int) -> None:
    if choices > len(question.choices):
        with pytest.raises(ValueError, match="cannot be reduced"):
            drop_choices(question, choices, seed)
        return
    found = drop_choices(question, choices, seed)
    assert len(found.choices) == choices
    assert list(found.choices) == [choice for choice in question.choices if choice in found.choices]
    assert question.answer is not None
    assert found.answer is not None
    assert found.choices[found.answer] == question.choices[question.answer]
    assert (found.id, found.question, found.context, found.subject) == (question.id, "?", "c", "s")
    assert found == drop_choices(question, choices, seed)
    if choices == len(question.choices):
        assert found == question
    elif choices > 2:
        assert set(drop_choices(question, choices - 1, seed).choices) < set(found.choices)


def test_the_draw_is_a_matter_of_record() -> None:
    """Files of earlier runs hold these choices, so a change here makes old and new ones differ."""
    kept = {answer: kept_choices("q1", 6, answer, 4, 0) for answer in (0, 3, 5)}
    assert kept == {0: (0, 3, 4, 5), 3: (0, 2, 3, 5), 5: (0, 2, 4, 5)}
    assert kept_choices("q1", 6, 3, 4, 1) == (1, 2, 3, 5)


@pytest.mark.parametrize("vary", ["seed", "id"])
def test_every_set_of_wrong_choices_is_equally_likely(vary: str) -> None:
    """Pearson's chi-square of 3,000 draws over the 6 pairs that may stay of 4 wrong choices."""
    draws = 3000
    counts = {tuple(sorted((2, *pair))): 0 for pair in combinations((0, 1, 3, 4), 2)}
    for n in range(draws):
        kept = kept_choices("q" if vary == "seed" else f"q{n}", 5, 2, 3, n if vary == "seed" else 0)
        assert kept is not None
        counts[kept] += 1
    # The draws follow from their seeds, so this is one fixed number, below the 99.9% quantile if they are fair.
    assert stats.chisquare(list(counts.values())).statistic < stats.chi2.ppf(0.999, 5)


def test_without_an_answer_only_a_question_of_k_choices_can_be_asked() -> None:
    blank = Question("q", "?", ("a", "b", "c"))
    assert drop_choices(blank, 3, 0) == blank
    assert kept_choices("q", 3, None, 2, 0) is None
    with pytest.raises(ValueError, match="'q' cannot be reduced to 2 choices"):
        drop_choices(blank, 2, 0)


def test_one_choice_is_no_question() -> None:
    with pytest.raises(ValueError, match="to 1 choices"):
        drop_choices(Question("q", "?", ("a", "b"), 0), 1, 0)


def test_what_cannot_be_reduced_is_counted() -> None:
    sizes = {"a": (5, 1), "b": (2, 0), "c": (3, None), "d": (4, None), "e": (3, 2), "f": (2, None)}
    questions = [Question(q, "?", tuple("vwxyz"[:count]), answer) for q, (count, answer) in sizes.items()]
    found = match_questions(questions, 3, 7)
    assert found.questions == [drop_choices(questions[n], 3, 7) for n in (0, 2, 4)]
    assert (found.fewer_choices, found.no_answer) == (2, 1)
