"""Questions asked again with fewer choices: the number of choices alone moves entropy and mutual information.

The draw is a pure function of the question's id, how many choices it has, its answer and the seed, so that questions
that were asked again and predictions whose columns are dropped (measures/matching.py) lose the same choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ripieno.data.question import Question
from ripieno.seeds import derive


@dataclass(frozen=True)
class Matched:
    """Questions reduced to K choices, and how many could not be.

    Args:
        questions: each with K choices, in the order they were given.
        fewer_choices: how many had fewer than K choices.
        no_answer: how many had more, and no answer to keep.
    """

    questions: list[Question]
    fewer_choices: int
    no_answer: int


def kept_choices(question_id: str, count: int, answer: int | None, choices: int, seed: int) -> tuple[int, ...] | None:
    """Draw which of a question's choices stay: the right one, and each set of wrong ones with the same probability.

    A choice dropped at some K is dropped at every smaller one too, so results at two K differ by little else than K.

    Args:
        question_id: the question's id.
        count: how many choices it has.
        answer: index of the right one, None where unknown.
        choices: K, how many are to stay.
        seed: of the draw.

    Returns:
        K indices, ascending; None where there are fewer than K, or where one would have to go and the right one is
        unknown.
    """
    if count == choices:
        return tuple(range(count))
    if count < choices or answer is None:
        return None
    wrong = [index for index in range(count) if index != answer]
    # Sorted by hashes, not drawn by a generator, whose stream may change with numpy's version.
    wrong.sort(key=lambda index: derive(seed, "choices", question_id, count, answer, index))
    return tuple(sorted([answer, *wrong[: choices - 1]]))


def drop_choices(question: Question, choices: int, seed: int) -> Question:
    """Return a question with wrong choices dropped at random to K in all, the others in their order; its id stays.

    Args:
        question: with K choices at least.
        choices: K, 2 at least.
        seed: of the draw.

    Raises:
        ValueError: K is below 2, the question has fewer choices, or it has more and no answer.
    """
    kept = kept_choices(question.id, len(question.choices), question.answer, choices, seed)
    if kept is None or choices < 2:
        raise ValueError(f"question {question.id!r} cannot be reduced to {choices} choices")
    if len(kept) == len(question.choices):
        return question
    assert question.answer is not None
    texts = tuple(question.choices[index] for index in kept)
    return replace(question, choices=texts, answer=kept.index(question.answer))


def match_questions(questions: Sequence[Question], choices: int, seed: int) -> Matched:
    """Reduce questions to K choices each; those that cannot be are left out and counted.

    Args:
        questions: of any numbers of choices.
        choices: K, 2 at least.
        seed: of the draw.
    """
    enough = [question for question in questions if len(question.choices) >= choices]
    able = [q for q in enough if len(q.choices) == choices or q.answer is not None]
    matched = [drop_choices(question, choices, seed) for question in able]
    return Matched(matched, len(questions) - len(enough), len(enough) - len(able))
