"""Each template's exact text: a character here decides what a run's numbers mean, so a change needs a new version."""

from dataclasses import replace

import pytest

from ripieno.data.prompts import TEMPLATES, Filled, few_shot_examples
from ripieno.data.question import Question

BIRD = Question("q", "Which has feathers?", ("a cat", "a bird", "a fish"), 1, subject="high_school_biology")
READ = replace(BIRD, context="It flies.\nIt sings.")


def test_every_template_has_its_name_and_version() -> None:
    assert {(name, t.name, t.version) for name, t in TEMPLATES.items()} == {
        ("paper", "paper", 1), ("letters", "letters", 1), ("text", "text", 1), ("text-listed", "text-listed", 1)
    }  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_listed_says_whether_a_choice_stands_in_the_prompt(name: str) -> None:
    template = TEMPLATES[name]
    with_fish, without = template.fill(BIRD), template.fill(replace(BIRD, choices=BIRD.choices[:2]))
    assert template.listed == ("a fish" in with_fish.prompt) == (with_fish.prompt != without.prompt)


@pytest.mark.parametrize("name", ["text", "text-listed"])
def test_the_cue_is_the_end_of_every_prompt(name: str) -> None:
    template = TEMPLATES[name]
    prompts = [template.fill(question).prompt for question in (BIRD, READ, replace(BIRD, question="When?"))]
    assert {prompt[prompt.rindex("\n") + 1 :] for prompt in prompts} == {template.cue} == {"Answer:"}


def test_paper() -> None:
    """Lower-case letters in parentheses; the opening one is the prompt's, the closing ")." the solved question's."""
    filled = TEMPLATES["paper"].fill(BIRD)
    prompt = "Q: Which has feathers?\nAnswer Choices:\n(a) a cat\n(b) a bird\n(c) a fish\nA: ("
    assert filled == Filled(prompt, ("a", "b", "c"), ").")
    assert TEMPLATES["paper"].fill(READ).prompt == "It flies.\nIt sings.\n" + prompt
    assert TEMPLATES["paper"].heading(BIRD) == ""
    assert TEMPLATES["paper"].letters == "abcdefghijklmnopqrstuvwxyz"


def test_letters() -> None:
    """Upper-case letters, the subject in words above, the space before the letter part of the answer."""
    template = TEMPLATES["letters"]
    filled = template.fill(BIRD)
    prompt = "Which has feathers?\nA. a cat\nB. a bird\nC. a fish\nAnswer:"
    assert filled == Filled(prompt, (" A", " B", " C"), "")
    assert template.fill(READ).prompt == "It flies.\nIt sings.\n" + prompt
    assert template.heading(BIRD) == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
    )
    assert template.heading(replace(BIRD, subject=None)) == ""
    assert template.letters == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def test_text() -> None:
    """The choices are continuations, and stand nowhere in the prompt."""
    filled = TEMPLATES["text"].fill(BIRD)
    prompt = "Question: Which has feathers?\nAnswer:"
    assert filled == Filled(prompt, (" a cat", " a bird", " a fish"), "")
    assert TEMPLATES["text"].fill(READ).prompt == "It flies.\nIt sings.\n" + prompt
    assert TEMPLATES["text"].heading(BIRD) == TEMPLATES["text"].letters == ""


def test_text_listed() -> None:
    """As `text`, the choices also listed in the prompt."""
    filled = TEMPLATES["text-listed"].fill(BIRD)
    prompt = "Question: Which has feathers?\nChoices:\n- a cat\n- a bird\n- a fish\nAnswer:"
    assert filled == Filled(prompt, (" a cat", " a bird", " a fish"), "")
    assert TEMPLATES["text-listed"].fill(READ).prompt == "It flies.\nIt sings.\n" + prompt
    assert TEMPLATES["text-listed"].letters == ""


POOL = [
    Question("p0", "Which one?", ("a", "b"), None, subject="math"),  # unsolved: no example
    Question("p1", "Is it?", ("yes", "no"), 0, subject="math"),
    BIRD,
    Question("p2", "Which bird?", ("a", "b"), 1, subject="high_school_biology"),
    Question("p3", "Which fish?", ("a", "b"), 1, subject="high_school_biology"),
]


def ids(question: Question, count: int, same_subject: bool) -> list[str]:
    return [q.id for q in few_shot_examples(question, POOL, count, same_subject)]


def test_few_shot_examples_are_the_first_solved_ones_of_the_subject() -> None:
    other = Question("x", "What?", ("a", "b"), subject="high_school_biology")
    assert ids(other, 2, same_subject=True) == ["q", "p2"]
    assert ids(other, 2, same_subject=False) == ["p1", "q"]
    assert ids(replace(other, subject=None), 1, same_subject=True) == ["p1"]


def test_few_shot_examples_never_hold_the_question_itself() -> None:
    """Whatever its id, and in whatever order training puts its choices: it would show its own answer."""
    assert ids(BIRD, 2, same_subject=True) == ["p2", "p3"]
    assert ids(replace(BIRD, id="copy"), 2, same_subject=True) == ["p2", "p3"]
    shuffled = replace(BIRD, choices=("a fish", "a cat", "a bird"), answer=2)
    assert ids(shuffled, 3, same_subject=False) == ["p1", "p2", "p3"]


def test_too_few_examples_are_an_error_that_counts_them() -> None:
    with pytest.raises(ValueError, match="3 few-shot examples were asked for, the split has 2 of subject 'high_school"):
        ids(BIRD, 3, same_subject=True)
    with pytest.raises(ValueError, match=r"9 few-shot examples were asked for, the split has 4$"):
        ids(replace(BIRD, question="Other?"), 9, same_subject=False)
