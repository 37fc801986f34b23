"""Where tokens begin, for both kinds of tokenizer: what is scored is the tokenizer's own encoding of the whole text."""

from __future__ import annotations

from dataclasses import replace
from os.path import commonprefix
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from families import byte_level_tokenizer, metaspace_tokenizer
from ripieno.config import FewShot, Prompt
from ripieno.data.prompts import TEMPLATES
from ripieno.data.question import Question, Text
from ripieno.errors import UserError
from ripieno.model.trees import Encoder, TokenTree

TOKENIZERS = {"byte-level": byte_level_tokenizer, "metaspace": metaspace_tokenizer}
every_tokenizer = pytest.mark.parametrize("kind", TOKENIZERS)
CITY = Question("city", "Which city?", ("New York", "New York City", "it", "New York"), 1)


def encode(encoder: Encoder, question: Question, max_tokens: int | None = None, too_long: Any = "error") -> TokenTree:
    trees, dropped = encoder.trees([question], max_tokens, too_long)
    assert not dropped
    return trees[0]


def assert_own_encoding(encoder: Encoder, question: Question) -> None:
    """Question and branch are the whole text's encoding; what they share with the prompt's is all in the question."""
    template, terminator = encoder.template, encoder.prompt.terminator
    filled = template.fill(question)
    prompt = template.heading(question) + filled.prompt
    newline = "\n" if not template.letters and terminator == "newline" else ""
    end = [encoder.tokenizer.eos_token_id] if not template.letters and terminator == "end_of_text" else []
    wholes = [[*encoder.tokenizer(prompt + answer + newline).input_ids, *end] for answer in filled.answers]
    tree = encode(encoder, question)
    assert [list(tree.question + branch) for branch in tree.branches] == wholes
    assert list(tree.question) == commonprefix([encoder.tokenizer(prompt).input_ids, *wholes])  # noqa: RUF071 (of lists)
    assert all(tree.branches)
    assert tree.choice_bytes == tuple(len(choice.encode()) for choice in question.choices)
    assert tree.answer == question.answer


@every_tokenizer
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("terminator", ["newline", "end_of_text"])
def test_question_and_branch_are_the_encoding_of_the_whole_text(kind: str, template: Any, terminator: Any) -> None:
    encoder = Encoder(TOKENIZERS[kind](), Prompt(template=template, terminator=terminator))
    for subject in (None, "new_york"):
        assert_own_encoding(encoder, replace(CITY, subject=subject, context="It is\n a city."))


@every_tokenizer
@pytest.mark.parametrize("terminator", ["newline", "end_of_text"])
def test_bare_choices_are_the_encoding_of_the_cue_with_them(kind: str, terminator: Any) -> None:
    """No question, no heading and no solved examples: "Answer: New York City" and its end."""
    tokenizer, pool = TOKENIZERS[kind](), [Question("p", "Which?", ("one", "two"), 0)]
    few_shot = FewShot(dataset="mmlu:all/dev", count=1)
    encoder = Encoder(tokenizer, Prompt(template="text", terminator=terminator, few_shot=few_shot), pool)
    newline, end = ("\n", []) if terminator == "newline" else ("", [tokenizer.eos_token_id])
    [tree] = encoder.bare([replace(CITY, context="It is.")])
    wholes = [[*tokenizer(f"Answer: {choice}{newline}").input_ids, *end] for choice in CITY.choices]
    assert [list(tree.question + branch) for branch in tree.branches] == wholes
    assert list(tree.question) == commonprefix([tokenizer("Answer:").input_ids, *wholes])  # noqa: RUF071 (of lists)
    assert tree.answer == 1


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    question=texts,
    choices=st.lists(texts, min_size=2, max_size=4),
    terminator=st.sampled_from(["newline", "end_of_text"]),
)
def test_any_unicode_text_is_encoded_as_a_whole(kind: str, question: str, choices: list[str], terminator: Any) -> None:
    encoder = Encoder(TOKENIZERS[kind](), Prompt(template="text", terminator=terminator))
    assert_own_encoding(encoder, Question("q", question, tuple(choices), 0))


@every_tokenizer
def test_terminators(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    newline = tokenizer("x\n", add_special_tokens=False).input_ids[-1]
    for terminator, last in (("newline", newline), ("end_of_text", tokenizer.eos_token_id)):
        tree = encode(Encoder(tokenizer, Prompt(template="text", terminator=terminator)), CITY)
        assert [branch[-1] for branch in tree.branches] == [last] * 4
        assert tree.branches[0][:-1] == tree.branches[1][: len(tree.branches[0]) - 1]
        assert tree.branches[0] == tree.branches[3]  # equal choices are equally likely
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, "x")))
    with pytest.raises(UserError, match="no end-of-text token; use newline"):
        Encoder(tokenizer, Prompt(template="text", terminator="end_of_text"))


def letters_tokenizer(merges: list[tuple[str, str]], special: str | None = None) -> PreTrainedTokenizerFast:
    """Return a BPE over single characters with these merges, and what it puts around a text."""
    alphabet = [chr(n) for n in range(32, 127)] + ["\n"]
    tokens = ["<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=special, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def test_tokens_that_join_across_the_boundary_move_to_the_branch() -> None:
    """ ":" and " N" become one token before one choice: no choice's question then ends in ":" alone."""
    tokenizer = letters_tokenizer([(" ", "N"), (":", " N")])
    encoder = Encoder(tokenizer, Prompt(template="text"))
    tree = encode(encoder, replace(CITY, choices=("No", "yes")))
    texts = [tokenizer.convert_ids_to_tokens(branch) for branch in tree.branches]
    assert texts == [[": N", "o", "\n"], [":", " ", "y", "e", "s", "\n"]]
    assert tokenizer.convert_ids_to_tokens(tree.question)[-6:] == list("Answer")
    assert_own_encoding(encoder, replace(CITY, choices=("No", "yes")))


def test_the_beginning_of_text_stands_once_before_and_nothing_behind() -> None:
    bos = metaspace_tokenizer().bos_token_id
    for template in TEMPLATES:
        shot = Prompt(template=template, few_shot=FewShot(dataset="pool", count=1))
        tree = encode(Encoder(metaspace_tokenizer(), shot, [replace(CITY, question="Where?")]), CITY)
        assert tree.question[0] == bos
        assert bos not in tree.question[1:]
        assert not any(bos in branch for branch in tree.branches)
    # Llama's tokenizers can be saved with an end-of-text token after every text: it belongs to no prompt.
    for special, expected in (("<s> $A </s>", [0]), ("$A </s>", []), ("<s> $A", [0])):
        tokenizer = letters_tokenizer([], special)
        encoder = Encoder(tokenizer, Prompt(template="text"))
        assert encoder.beginning == expected
        tree = encode(encoder, CITY)
        assert 1 not in tree.question + tree.branches[0]
        assert "".join(tokenizer.convert_ids_to_tokens(tree.question[len(expected) :])).startswith("Question: ")


# Letters


@every_tokenizer
@pytest.mark.parametrize("template", ["letters", "paper"])
def test_each_letter_is_one_token_of_its_own(kind: str, template: Any) -> None:
    encoder = Encoder(TOKENIZERS[kind](), Prompt(template=template))
    five = encode(encoder, replace(CITY, choices=("a", "b", "c", "d", "e")))
    assert [len(branch) for branch in five.branches] == [1] * 5
    assert len(set(five.branches)) == 5
    two = encode(encoder, replace(CITY, choices=("a", "b")))
    assert two.branches == five.branches[:2]
    assert two.letters == five.letters == tuple(branch[0] for branch in five.branches)
    assert encode(Encoder(TOKENIZERS[kind](), Prompt(template="text")), CITY).letters == ()


def test_letters_of_two_tokens_are_an_error() -> None:
    encoder = Encoder(byte_level_tokenizer(), Prompt(template="letters"))
    with pytest.raises(UserError, match=r"question 'city': the letter ' F' takes 2 tokens .* use a text template"):
        encode(encoder, replace(CITY, choices=tuple("abcdef")))
    encoder = Encoder(letters_tokenizer([]), Prompt(template="letters"))
    with pytest.raises(UserError, match="the letter ' A' takes 2 tokens"):
        encode(encoder, CITY)


def test_letters_that_are_the_same_token_are_an_error() -> None:
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "Answer:": 1}, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match="two letters are the same token"):
        encode(Encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer), Prompt(template="letters")), CITY)


def test_27_choices_need_a_text_template() -> None:
    many = Question("many", "Which?", tuple(f"c{n}" for n in range(27)), 26)
    for template in ("letters", "paper"):
        with pytest.raises(UserError, match="question 'many' has 27 choices, letters end at 26; use a text template"):
            encode(Encoder(letters_tokenizer([]), Prompt(template=template)), many)
        few_shot = Prompt(template=template, few_shot=FewShot(dataset="pool", count=1))
        with pytest.raises(UserError, match="question 'many' has 27 choices"):
            encode(Encoder(byte_level_tokenizer(), few_shot, [many]), CITY)
    assert len(encode(Encoder(byte_level_tokenizer(), Prompt(template="text")), many).branches) == 27


# Few-shot


@every_tokenizer
@pytest.mark.parametrize("template", TEMPLATES)
def test_few_shot_examples_stand_before_the_question_as_one_text(kind: str, template: Any) -> None:
    """The heading once, then each example solved with its closing, then the question, encoded together."""
    pool = [
        Question(f"p{n}", f"{word}?", ("a cat", "a bird"), n, subject="s") for n, word in enumerate(("Where", "What"))
    ]
    tokenizer = TOKENIZERS[kind]()
    encoder = Encoder(tokenizer, Prompt(template=template, few_shot=FewShot(dataset="pool", count=2)), pool)
    question = replace(CITY, subject="s")
    fill, text = TEMPLATES[template].fill, TEMPLATES[template].heading(question)
    newline = "" if TEMPLATES[template].letters else "\n"
    for shot, k in ((fill(pool[0]), 0), (fill(pool[1]), 1)):
        text += shot.prompt + shot.answers[k] + shot.closing + (newline or "\n\n")
    own = fill(question)
    tree = encode(encoder, question)
    wholes = [tokenizer(text + own.prompt + answer + newline).input_ids for answer in own.answers]
    assert [list(tree.question + branch) for branch in tree.branches] == wholes


def test_a_question_is_no_example_of_its_own_and_too_few_examples_are_an_error() -> None:
    prompt = Prompt(template="text", few_shot=FewShot(dataset="mmlu:all/dev", count=1))
    with pytest.raises(UserError, match=r"few_shot\.dataset mmlu:all/dev: 1 few-shot examples .* the split has 0"):
        encode(Encoder(byte_level_tokenizer(), prompt, [CITY]), CITY)


# Length


@every_tokenizer
def test_questions_that_are_too_long(kind: str) -> None:
    encoder = Encoder(TOKENIZERS[kind](), Prompt(template="text"))
    short = replace(CITY, id="short", question="W?")
    length = encode(encoder, CITY).length
    assert length == len(encode(encoder, CITY).question) + max(map(len, encode(encoder, CITY).branches))
    trees, dropped = encoder.trees([short, CITY, short], length - 1, "drop")
    assert (len(trees), dropped) == (2, [CITY])
    for too_long in ("error", "shorten_context"):  # without a context there is nothing to shorten
        with pytest.raises(UserError, match=f"question 'city' takes {length} tokens, {length - 1} are allowed"):
            encode(encoder, CITY, length - 1, too_long)
    assert encode(encoder, CITY, length) == encode(encoder, CITY)
    limited = Encoder(encoder.tokenizer, encoder.prompt, limit=length - 1)  # the base's own limit
    with pytest.raises(UserError, match=f"{length - 1} are allowed"):
        encode(limited, CITY, 10_000)


@every_tokenizer
@pytest.mark.parametrize("template", TEMPLATES)
def test_shortening_cuts_as_few_words_of_the_context_as_will_do(kind: str, template: Any) -> None:
    encoder = Encoder(TOKENIZERS[kind](), Prompt(template=template))
    words = [
        "the",
        "weather",
        "of",
        "the",
        "season",
        "depends",
        "on",
        "the",
        "day",
        "near",
        "a",
        "window",
        "of",
        "the",
        "house",
    ]
    question = replace(CITY, context=" ".join(words))
    of_cut = [
        encode(encoder, replace(question, context=" ".join(words[cut:]) or None)) for cut in range(len(words) + 1)
    ]
    for max_tokens in range(of_cut[-1].length, of_cut[0].length + 1):
        first = next(tree for tree in of_cut if tree.length <= max_tokens)
        shortened = encode(encoder, question, max_tokens, "shorten_context")
        assert shortened == first
        assert shortened.branches == of_cut[0].branches  # answers are never cut
    with pytest.raises(UserError, match="question 'city' takes"):
        encode(encoder, question, of_cut[-1].length - 1, "shorten_context")


# The next_token loss


@every_tokenizer
def test_solved_questions_are_whole_texts(kind: str) -> None:
    """The paper's closing ")." belongs to the filled-in question; text templates end as they are scored."""
    tokenizer = TOKENIZERS[kind]()
    expected = {
        "paper": "Q: Which city?\nAnswer Choices:\n(a) New York\n(b) New York City\n(c) it\n(d) New York\nA: (b).",
        "letters": "Which city?\nA. New York\nB. New York City\nC. it\nD. New York\nAnswer: B",
        "text": "Question: Which city?\nAnswer: New York City\n",
    }
    for template, text in expected.items():
        [sequence], dropped = Encoder(tokenizer, Prompt(template=template)).sequences([CITY], None, "error")
        assert list(sequence.tokens) == tokenizer(text).input_ids
        assert not dropped
    encoder = Encoder(tokenizer, Prompt(template="text", terminator="end_of_text"))
    [sequence], _ = encoder.sequences([CITY], None, "error")
    assert list(sequence.tokens) == [*tokenizer(expected["text"][:-1]).input_ids, tokenizer.eos_token_id]
    with pytest.raises(UserError, match="question 'city' has no answer"):
        encoder.sequences([replace(CITY, answer=None)], None, "error")


@every_tokenizer
def test_texts_end_with_the_end_of_text(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    encoder = Encoder(tokenizer, Prompt(template="text"))
    row = Text("t1", "It is near the house.\n")
    [sequence], _ = encoder.sequences([row], None, "error")
    assert list(sequence.tokens) == [*tokenizer(row.text).input_ids, tokenizer.eos_token_id]
    short = sequence.length - 1
    sequences, dropped = encoder.sequences([row, CITY], short, "drop")
    assert dropped == [row, CITY][: len(dropped)]
    assert all(s.length <= short for s in sequences)
    with pytest.raises(UserError, match=f"'t1' takes {sequence.length} tokens, {short} are allowed"):
        encoder.sequences([row], short, "error")


def test_keys_follow_the_questions_id_alone() -> None:
    """Dropout masks are drawn by them: the same whatever stands around a question, another for another question."""
    encoder = Encoder(byte_level_tokenizer(), Prompt(template="text"))
    one, two = (encode(encoder, replace(CITY, id=name)).key for name in ("one", "two"))
    assert one != two
    [sequence], _ = encoder.sequences([replace(CITY, id="one")], None, "error")
    assert one == sequence.key == encode(encoder, replace(CITY, id="one", context="More.")).key
