"""Prompts: named, versioned templates, and the few-shot examples that stand before a question.

A template is text alone; where tokens begin is decided in model/trees.py.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ripieno.data.question import Question


@dataclass(frozen=True, slots=True)
class Filled:
    """A question put into a template.

    Args:
        prompt: all that stands before the answer.
        answers: K continuations, one a choice, with their leading space where the template has one.
        closing: what follows the answer in a solved question, before any terminator.
    """

    prompt: str
    answers: tuple[str, ...]
    closing: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """A way to put a question: letters stand for the choices, or the choices themselves are continuations."""

    name: str
    version: int
    letters: str  # the alphabet of a letters template, "" where the choices are continuations
    listed: bool  # whether the choices stand in the prompt, so that each one's score depends on which others there are
    fill: Callable[[Question], Filled]
    heading: Callable[[Question], str] = lambda _: ""
    cue: str = ""  # of a text template: what stands just before the answer, whatever is asked


def _paper(q: Question) -> Filled:
    """The paper's own prompt; the parenthesis before the letter belongs to the prompt, ")." to the solved question."""
    letters = string.ascii_lowercase[: len(q.choices)]
    listed = "".join(f"({letter}) {choice}\n" for letter, choice in zip(letters, q.choices, strict=True))
    return Filled(f"{_context(q)}Q: {q.question}\nAnswer Choices:\n{listed}A: (", tuple(letters), ").")


def _letters(q: Question) -> Filled:
    """As the evaluation harness most people quote puts MMLU: the letter follows "Answer:" and a space."""
    letters = string.ascii_uppercase[: len(q.choices)]
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(letters, q.choices, strict=True))
    # " A" and "A" are different tokens, and after a colon people write the first.
    return Filled(f"{_context(q)}{q.question.strip()}\n{listed}Answer:", tuple(f" {letter}" for letter in letters))


def _subject(q: Question) -> str:
    if q.subject is None:
        return ""
    return f"The following are multiple choice questions (with answers) about {q.subject.replace('_', ' ')}.\n\n"


def _text(q: Question) -> Filled:
    return Filled(f"{_context(q)}Question: {q.question}\nAnswer:", tuple(f" {choice}" for choice in q.choices))


def _text_listed(q: Question) -> Filled:
    listed = "".join(f"- {choice}\n" for choice in q.choices)
    prompt = f"{_context(q)}Question: {q.question}\nChoices:\n{listed}Answer:"
    return Filled(prompt, tuple(f" {choice}" for choice in q.choices))


def _context(q: Question) -> str:
    return f"{q.context}\n" if q.context else ""


TEMPLATES: Mapping[str, Template] = {
    t.name: t
    for t in (
        Template("paper", 1, string.ascii_lowercase, True, _paper),
        Template("letters", 1, string.ascii_uppercase, True, _letters, _subject),
        Template("text", 1, "", False, _text, cue="Answer:"),
        Template("text-listed", 1, "", True, _text_listed, cue="Answer:"),
    )
}


def few_shot_examples(question: Question, pool: Sequence[Question], count: int, same_subject: bool) -> list[Question]:
    """Return the first `count` solved questions of the pool, never the question itself, in whatever order its choices.

    Args:
        same_subject: take those of the question's own subject alone, where it has one.

    Raises:
        ValueError: the pool holds fewer.
    """
    own = (question.question, sorted(question.choices))
    fitting = [
        q
        for q in pool
        if q.answer is not None
        and (q.question, sorted(q.choices)) != own
        and (not same_subject or question.subject is None or q.subject == question.subject)
    ]
    if len(fitting) < count:
        of_subject = f" of subject {question.subject!r}" if same_subject and question.subject else ""
        raise ValueError(f"{count} few-shot examples were asked for, the split has {len(fitting)}{of_subject}")
    return fitting[:count]
