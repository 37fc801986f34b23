"""Token trees: a question's tokens once, then one branch of tokens a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ripieno.config import Prompt, TemplateName, TooLong
from ripieno.data.prompts import TEMPLATES, Filled, few_shot_examples
from ripieno.data.question import Question, Text
from ripieno.errors import UserError
from ripieno.seeds import key

FIXED_LETTERS = 5  # the paper's a to e


@dataclass(frozen=True, slots=True)
class TokenTree:
    """A question as tokens.

    Args:
        key: what the question's dropout masks are drawn by; the same wherever it stands in a batch.
        question: the tokens that all choices share; at least one.
        branches: K runs of tokens, at least one each, every one of which is scored.
        choice_bytes: K lengths in bytes of the choices' own text (UTF-8, no space before, no terminator).
        answer: index of the right choice, or None.
        letters: letters templates: the tokens of the fixed letters a to e, else ().
    """

    key: int
    question: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    choice_bytes: tuple[int, ...]
    answer: int | None
    letters: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the question with its longest branch."""
        return len(self.question) + max(len(branch) for branch in self.branches)

    @property
    def fed(self) -> int:
        """Tokens of all branches that the model has to read: all but each one's last, which is only predicted."""
        return sum(len(branch) - 1 for branch in self.branches)

    @property
    def read(self) -> int:
        """Tokens that the model has to read: the question's, and those of its branches."""
        return len(self.question) + self.fed


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Running text as tokens: all but the first are predicted (the `next_token` loss)."""

    key: int
    tokens: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.tokens)

    @property
    def read(self) -> int:
        """Tokens that the model has to read: all but the last, which is only predicted; one at least."""
        return max(len(self.tokens) - 1, 1)


@dataclass(frozen=True, slots=True)
class SpelledText:
    """Running text as tokens that know which characters they stand for.

    Args:
        id: the row's or question's.
        text: as written.
        tokens: what the tokenizer puts before every text, then the text's own T tokens.
        before: how many it puts there.
        spans: T pairs (start, end) of characters. Joined, they are the text: a character that several tokens spell
            belongs to the last of them, white space that the tokenizer passes over to the token after it.
        answer: a solved question: those of the T tokens that are scored as its right answer; None for other text.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    before: int
    spans: tuple[tuple[int, int], ...]
    answer: range | None = None

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.tokens)


class Encoder:
    """Turns questions into token trees, as one prompt configuration and one tokenizer say.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt: template, few-shot count, terminator.
        pool: the few-shot examples' split; () without few-shot.
        limit: the base's longest input, in tokens, where it has one.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt, pool: Sequence[Question] = (), limit: int | None = None):
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.pool = pool
        self.limit = limit
        self.template = TEMPLATES[prompt.template]
        # What the tokenizer puts before every text (a beginning-of-text token, or nothing), not what it puts after.
        with_special = tokenizer("x").input_ids
        bare = tokenizer("x", add_special_tokens=False).input_ids
        places = [n for n in range(len(with_special)) if with_special[n : n + len(bare)] == bare]
        self.beginning: list[int] = with_special[: places[-1] if places else len(with_special) - len(bare)]
        if prompt.terminator == "end_of_text" and tokenizer.eos_token_id is None:
            raise UserError("prompt.terminator: this tokenizer has no end-of-text token; use newline")

    def trees(
        self, questions: Sequence[Question], max_tokens: int | None, too_long: TooLong
    ) -> tuple[list[TokenTree], list[Question]]:
        """Encode questions for scoring.

        Returns:
            trees: of the questions that fit, in order (the context shortened where asked).
            dropped: the questions that did not fit, with `too_long` = "drop".

        Raises:
            UserError: a question is too long with `error`, or a letter is not one token of its own.
        """
        fitting, dropped = [], []
        for question in questions:
            tree = self._fit(question, max_tokens, too_long, self._tree)
            if tree is None:
                dropped.append(question)
            else:
                fitting.append(tree)
        return fitting, dropped

    def with_template(self, name: TemplateName) -> Encoder:
        """Return an encoder that differs in its template alone, which the few-shot examples are put into as well."""
        prompt = self.prompt.model_copy(update={"template": name})
        return Encoder(self.tokenizer, prompt, self.pool, self.limit)

    def bare(self, questions: Sequence[Question]) -> list[TokenTree]:
        """Encode the choices of questions after a text template's answer cue alone, by the same rule as `trees`."""
        return [self._branching(q, replace(self._fill(q), prompt=self.template.cue)) for q in questions]

    def sequences(
        self, rows: Sequence[Question | Text], max_tokens: int | None, too_long: TooLong
    ) -> tuple[list[TokenSequence], list[Question | Text]]:
        """Encode solved questions and texts for the `next_token` loss; as `trees`, whole rows instead of branches."""
        fitting: list[TokenSequence] = []
        dropped: list[Question | Text] = []
        for row in rows:
            if isinstance(row, Text):
                sequence = self._text(row)
                if sequence.length > self._limit(max_tokens):
                    if too_long != "drop":
                        raise UserError(self._too_long(row.id, row.text, sequence.length, max_tokens))
                    dropped.append(row)
                    continue
            else:
                fitted = self._fit(row, max_tokens, too_long, self._solved)
                if fitted is None:
                    dropped.append(row)
                    continue
                sequence = fitted
            fitting.append(sequence)
        return fitting, dropped

    def spell(self, row: Text) -> SpelledText:
        """Encode running text as it stands: nothing is cut, and no end of text follows.

        Raises:
            UserError: the tokenizer does not say which characters its tokens stand for.
        """
        tokens, spans = self._spans(row.text)
        return SpelledText(row.id, row.text, (*self.beginning, *tokens), len(self.beginning), tuple(spans))

    def solved(
        self, questions: Sequence[Question], max_tokens: int | None, too_long: TooLong
    ) -> tuple[list[SpelledText], list[Question]]:
        """Encode questions with their right answers as running text; what is returned and raised as by `trees`."""
        fitted = [(question, self._fit(question, max_tokens, too_long, self._spelled)) for question in questions]
        return [text for _, text in fitted if text], [question for question, text in fitted if text is None]

    def _fit(self, question: Question, max_tokens: int | None, too_long: TooLong, encode: Any) -> Any:
        encoded = encode(question)
        limit = self._limit(max_tokens)
        if encoded.length <= limit:
            return encoded
        if too_long == "drop":
            return None
        if too_long == "error" or not question.context:
            raise UserError(self._too_long(question.id, question.question, encoded.length, max_tokens))
        # The end of a passage stands nearest to the question, so words go from its front, as few as will do.
        words = question.context.split(" ")
        fewest, most = 1, len(words)
        while fewest < most:
            cut = (fewest + most) // 2
            if encode(_without_words(question, words, cut)).length <= limit:
                most = cut
            else:
                fewest = cut + 1
        encoded = encode(_without_words(question, words, most))
        if encoded.length > limit:
            raise UserError(self._too_long(question.id, question.question, encoded.length, max_tokens))
        return encoded

    def _limit(self, max_tokens: int | None) -> float:
        return min(limit for limit in (max_tokens, self.limit, float("inf")) if limit is not None)

    def _too_long(self, row: str, text: str, length: int, max_tokens: int | None) -> str:
        limit = self._limit(max_tokens)
        more = "(the base reads no more)" if limit == self.limit else "(raise max_tokens)"
        return (
            f"question {row!r} takes {length} tokens, {limit:.0f} are allowed {more}: shorten it, or set too_long to "
            "drop or shorten_context (which cuts the context, never the question or its choices); it begins "
            f"{_beginning(text)}"
        )

    def _tree(self, question: Question) -> TokenTree:
        return self._branching(question, self._filled(question))

    def _branching(self, question: Question, filled: Filled) -> TokenTree:
        prompt = self._encode(filled.prompt)
        whole = [self._encode(filled.prompt + answer + self._newline()) + self._end() for answer in filled.answers]
        # Tokens may join across the boundary, so what the prompt and every solved prompt share is the question.
        shared = _shared_front([prompt, *whole])
        branches = tuple(tuple(tokens[shared:]) for tokens in whole)
        letters: tuple[int, ...] = ()
        if self.template.letters:
            self._check_letters(question, filled, branches)
            letters = self._fixed_letters(filled, shared)
        if shared == 0 or not all(branches):
            raise UserError(f"question {question.id!r}: its prompt and a choice leave no tokens to score")
        return TokenTree(
            key=key(question.id),
            question=tuple(whole[0][:shared]),
            branches=branches,
            choice_bytes=tuple(len(choice.encode()) for choice in question.choices),
            answer=question.answer,
            letters=letters,
        )

    def _solved(self, question: Question) -> TokenSequence:
        solved = self._with_answer(question, self._filled(question))
        return TokenSequence(key(question.id), tuple(self._encode(solved) + self._end()))

    def _with_answer(self, question: Question, filled: Filled) -> str:
        if question.answer is None:
            raise UserError(
                f"question {question.id!r} has no answer; the next_token loss trains on solved questions; "
                "give it one, or take it out"
            )
        return filled.prompt + filled.answers[question.answer] + filled.closing + self._newline()

    def _spelled(self, question: Question) -> SpelledText:
        filled = self._filled(question)
        text = self._with_answer(question, filled)
        tokens, spans = self._spans(text)
        end = self._end()
        tokens, spans = [*self.beginning, *tokens, *end], [*spans, *[(len(text), len(text))] * len(end)]
        before = len(self.beginning)
        # As in a tree: what the question and the solved question share at the front is not the answer's.
        first = _shared_front([self._branching(question, filled).question, tokens]) - before
        stop = len(spans)
        if filled.closing:
            closing = len(text) - len(filled.closing)
            stop = next((n for n, (start, _) in enumerate(spans) if start >= closing), stop)
        return SpelledText(question.id, text, tuple(tokens), before, tuple(spans), range(first, stop))

    def _spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return a text's tokens, and the characters that each stands for (see `SpelledText`)."""
        if not self.tokenizer.is_fast:
            raise UserError("this base's tokenizer does not say where in a text its tokens stand, so it cannot be read")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets: list[tuple[int, int]] = encoded.offset_mapping
        spans, begin = [], 0
        for n, (_, end) in enumerate(offsets):
            # Each token of a character claims it whole; what no token claims goes with the next, or else the last.
            end = min(end, offsets[n + 1][0]) if n + 1 < len(offsets) else len(text)
            spans.append((begin, max(begin, end)))
            begin = spans[-1][1]
        return encoded.input_ids, spans

    def _text(self, row: Text) -> TokenSequence:
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return TokenSequence(key(row.id), tuple(self._encode(row.text) + end))

    def _fill(self, question: Question) -> Filled:
        alphabet = self.template.letters
        if alphabet and len(question.choices) > len(alphabet):
            raise UserError(
                f"question {question.id!r} has {len(question.choices)} choices, letters end at {len(alphabet)}; "
                f"use a text template (prompt.template text or text-listed); it begins {_beginning(question.question)}"
            )
        return self.template.fill(question)

    def _filled(self, question: Question) -> Filled:
        filled = self._fill(question)
        few_shot = self.prompt.few_shot
        before = self.template.heading(question)
        if few_shot:
            try:
                examples = few_shot_examples(question, self.pool, few_shot.count, few_shot.same_subject)
            except ValueError as error:
                raise UserError(
                    f"prompt.few_shot.dataset {few_shot.dataset}: {error}; lower prompt.few_shot.count"
                ) from None
            for example in examples:
                shot = self._fill(example)
                # An example ends as a scored choice does, or that end would be one that no example shows.
                end = self._newline() or "\n\n"
                before += f"{shot.prompt}{shot.answers[example.answer or 0]}{shot.closing}{end}"
        return replace(filled, prompt=before + filled.prompt)

    def _newline(self) -> str:
        return "\n" if not self.template.letters and self.prompt.terminator == "newline" else ""

    def _end(self) -> list[int]:
        ends = not self.template.letters and self.prompt.terminator == "end_of_text"
        return [self.tokenizer.eos_token_id] if ends else []

    def _encode(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.beginning + tokens

    def _check_letters(self, question: Question, filled: Filled, branches: tuple[tuple[int, ...], ...]) -> None:
        for answer, branch in zip(filled.answers, branches, strict=True):
            if len(branch) != 1:
                raise UserError(
                    f"question {question.id!r}: the letter {answer!r} takes {len(branch)} tokens of this tokenizer, "
                    f"template {self.template.name!r} needs one; use a text template (prompt.template text or "
                    "text-listed)"
                )
        if len(set(branches)) < len(branches):
            raise UserError(
                f"question {question.id!r}: two letters are the same token of this tokenizer; "
                "use a text template (prompt.template text or text-listed)"
            )

    def _fixed_letters(self, filled: Filled, shared: int) -> tuple[int, ...]:
        """Return the tokens of the first five letters at the answer, however many choices the question has."""
        first = filled.answers[0]
        answers = [first[:-1] + letter for letter in self.template.letters[:FIXED_LETTERS]]
        tails = [self._encode(filled.prompt + answer)[shared:] for answer in answers]
        if any(len(tail) != 1 for tail in tails):
            raise UserError(
                f"template {self.template.name!r}: a letter of a to e is not one token of this tokenizer; "
                "leave evaluation.fixed_letters out"
            )
        return tuple(tail[0] for tail in tails)


def _beginning(text: str) -> str:
    """Return how a text begins: an id that was made up is not in its file, these words are."""
    return repr(text if len(text) <= 40 else f"{text[:40]} ...")


def _shared_front(rows: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all rows begin with."""
    columns = enumerate(zip(*rows, strict=False))
    return next((n for n, column in columns if len(set(column)) > 1), min(map(len, rows)))


def _without_words(question: Question, words: list[str], cut: int) -> Question:
    return replace(question, context=" ".join(words[cut:]) or None)
