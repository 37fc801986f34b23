"""Every token's numbers are those of plain models' full logits in float64, whatever shares a pass or a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import QUESTIONS, World, bound, new_world, plain, world
from torch import Tensor

from families import FAMILIES, byte_level_tokenizer, metaspace_tokenizer, tiny_model
from ripieno.config import Prompt
from ripieno.data.question import Question, Text
from ripieno.errors import UserError
from ripieno.model import reading
from ripieno.model.backbone import Backbone
from ripieno.model.reading import read, windows
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder, SpelledText
from ripieno.tokens import Tokens

every_family = pytest.mark.parametrize("family", FAMILIES)
TEXTS = ("Which day of the season is it in New York City?\n\nIt is a naïve 😀 day.", "a bird, near the house", "two")


def spell(texts: Sequence[str], tokenizer: Any = None) -> list[SpelledText]:
    encoder = Encoder(tokenizer or byte_level_tokenizer(), Prompt())
    return [encoder.spell(Text(f"t{n}", text)) for n, text in enumerate(texts)]


@dataclass(frozen=True)
class Truth:
    """Float64 of one text's predicted tokens: [M, T] and [T], with bounds on what float32 makes of them."""

    member_log_probs: Tensor
    log_probs: Tensor
    entropy: Tensor
    expected_entropy: Tensor
    confidence: Tensor
    likeliest: Tensor
    entropy_bound: Tensor


@torch.inference_mode()
def full(models: Sequence[torch.nn.Module], tokens: Sequence[int]) -> Tensor:
    """Return float64 [M, T - 1, V], the log-probabilities of everything."""
    each = [model(input_ids=torch.tensor([tokens])).logits[0, :-1].double().log_softmax(-1) for model in models]
    return torch.stack(each)


def truth_of(log_p: Tensor, targets: Sequence[int]) -> Truth:
    of_tokens = log_p[:, range(len(targets)), targets]
    pooled = log_p.exp().mean(0)
    entropies = torch.special.entr(log_p.exp()).sum(-1)
    # ln p off by e moves -p ln p by p e (1 + |ln p|); the pooled ln p is off by no more than the worst member's.
    moved = (log_p.exp() * bound(log_p) * (1 + log_p.abs())).sum(-1).amax(0)
    pooled_log = pooled.log()
    moved_pooled = (pooled * bound(log_p).amax(0) * (1 + pooled_log.abs())).sum(-1)
    confidence, likeliest = pooled.max(-1)
    return Truth(
        of_tokens,
        of_tokens.exp().mean(0).log(),
        torch.special.entr(pooled).sum(-1),
        entropies.mean(0),
        confidence,
        likeliest,
        torch.maximum(moved, moved_pooled),
    )


def assert_true(t: Tokens, rows: np.ndarray, truth: Truth) -> None:
    def near(ours: np.ndarray, theirs: Tensor, allowed: Tensor) -> None:
        assert ((torch.from_numpy(ours) - theirs).abs() <= allowed).all()

    members = bound(truth.member_log_probs)
    near(t.member_log_probs[:, rows], truth.member_log_probs, members)
    near(t.log_probs[rows], truth.log_probs, members.amax(0))
    near(t.entropy[rows], truth.entropy, truth.entropy_bound)
    near(t.expected_entropy[rows], truth.expected_entropy, truth.entropy_bound)
    near(t.mutual_information[rows], truth.entropy - truth.expected_entropy, 2 * truth.entropy_bound)
    near(t.confidence[rows], truth.confidence, truth.confidence * bound(truth.confidence.log()).amax())
    assert (torch.from_numpy(t.correct[rows]) == (truth.likeliest == torch.from_numpy(t.token_ids[rows]))).all()


def assert_naive(w: World, members: Sequence[int], texts: Sequence[SpelledText], t: Tokens) -> None:
    models = [plain(w.family, member) for member in members or (None,)]
    for text, rows in zip(texts, t.texts().values(), strict=True):
        index = np.arange(rows.start, rows.stop)
        first = 0 if text.before else 1
        assert t.predicted[index].tolist() == [n >= first for n in range(len(index))]
        if len(index) > first:
            log_p = full(models, text.tokens)[:, max(text.before - 1, 0) :]
            assert_true(t, index[first:], truth_of(log_p, text.tokens[max(text.before, 1) :]))


@every_family
def test_every_token_is_read_as_by_the_plain_models(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base alone; three members, two of them in one pass, a few columns at a time."""
    texts = spell(TEXTS)
    w = world(family)
    assert_naive(w, (), texts, read(w.engine, (), texts, None, 1))
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 400 * 3 * 2 * 7)
    t = read(w.engine, (0, 2, 1), texts, None, 2)
    assert t.members == (0, 2, 1)
    assert t.member_log_probs.shape == (3, len(t.text_ids))
    assert_naive(w, (0, 2, 1), texts, t)
    # The bounds have teeth: members differ by far more.
    assert np.ptp(t.member_log_probs, axis=0)[t.predicted].max() > 0.05
    assert t.mutual_information.max() > 1e-3
    if family == "gpt2":
        with pytest.raises(AssertionError):
            assert_naive(w, (0, 1, 2), texts, t)


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
@pytest.mark.parametrize("members_per_pass", [1, 3])
@pytest.mark.parametrize("at_once", [1, 10_000, 2**23])
def test_no_grouping_moves_a_number_beyond_rounding(
    batch_tokens: int, members_per_pass: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world("gemma2")
    texts = spell([*TEXTS, "Answer: one", "the house of the bird"])
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", at_once)
    engine = Engine(w.backbone, w.stack, batch_tokens)
    assert_naive(w, (0, 1, 2), texts, read(engine, (0, 1, 2), texts, None, members_per_pass))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_asked_for_in_parts_and_hidden_states_computed_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = new_world(family)
    [text] = spell(TEXTS[:1])
    bodies, logits = [], []
    w.backbone.model.get_input_embeddings().register_forward_hook(lambda *_: bodies.append(1))
    w.backbone.model.register_forward_hook(lambda _m, _i, output: logits.append(output.logits.shape))
    monkeypatch.setattr(reading, "LOGITS_AT_ONCE", 400 * 2 * 5)
    read(w.engine, (0, 1, 2), [text], None, 2)
    assert len(bodies) == 2  # members 0 and 1 together, then member 2
    columns = -(-(text.length - 1) // 5)
    assert len(logits) == 2 * columns
    assert max(shape.numel() for shape in logits) <= 400 * 2 * 5
    assert "forward" not in vars(w.backbone.model.get_decoder())  # it computes again


def test_one_member_has_nothing_to_disagree_with() -> None:
    w = world("llama")
    t = read(w.engine, (1,), spell(TEXTS), None, 1)
    assert not t.mutual_information.any()
    np.testing.assert_allclose(t.log_probs, t.member_log_probs[0], atol=0)


def test_a_text_of_one_token_has_no_prediction_unless_something_stands_before() -> None:
    w = world("llama")
    [alone] = spell(["a"])
    t = read(w.engine, (), [alone], None, 1)
    assert t.predicted.tolist() == [False]
    [after] = spell(["a"], metaspace_tokenizer())
    assert after.before == 1
    t = read(w.engine, (0, 1), [after], None, 1)
    assert t.predicted.tolist() == [True]
    assert t.tokens == ("a",)
    assert_naive(w, (0, 1), [after], t)


# ---- long texts -------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 60), before=st.integers(0, 2), limit=st.integers(4, 64))
def test_windows_predict_every_token_once_with_half_a_window_of_context(length: int, before: int, limit: int) -> None:
    own = tuple(range(100, 100 + length))
    text = SpelledText("t", "", (*range(before), *own), before, ((0, 0),) * length)
    found = windows(text, limit, row=1000)
    predicted = []
    for number, w in enumerate(found):
        tokens = w.sequence.tokens
        assert w.length <= limit
        assert tokens[:before] == tuple(range(before))
        inside = tokens[before:]
        assert list(inside) == list(range(inside[0], inside[0] + len(inside)))  # the text, without a gap
        rows = range(w.row, w.row + w.length - w.first)
        assert [row - 1000 + 100 for row in rows if row >= 1000] == [x for x in tokens[w.first :] if x >= 100]
        predicted += [row for row in rows if row >= 1000]
        if number:
            assert w.first - before >= (limit - before) // 2
            assert w.length == limit
    assert predicted == list(range(1000 + (0 if before else 1), 1000 + length))
    assert (len(found) == 1) == (length + before <= limit)


def test_a_window_of_one_token_is_refused() -> None:
    [text] = spell(TEXTS[:1])
    with pytest.raises(UserError, match="max_tokens"):
        windows(text, 1)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer, metaspace_tokenizer])
def test_windows_are_read_as_the_plain_models_read_them(tokenizer: Any) -> None:
    w = world("llama")
    [text] = spell(["It is day in New York City, and the bird is near a window of the house. " * 3], tokenizer())
    limit = 24
    assert text.length > 3 * limit
    t = read(Engine(w.backbone, w.stack, 100), (0, 1, 2), [text], limit, 3)
    assert t.predicted.sum() == text.length - 1
    models = [plain("llama", member) for member in range(3)]
    for window in windows(text, limit):
        tokens = window.sequence.tokens
        log_p = full(models, tokens)[:, window.first - 1 :]
        rows = np.arange(window.row, window.row + window.length - window.first)
        assert_true(t, rows, truth_of(log_p, tokens[window.first :]))


# ---- which characters a token stands for ------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer, metaspace_tokenizer])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_tokens_of_a_text_joined_are_the_text(tokenizer: Any, text: str) -> None:
    [spelled] = spell([text], tokenizer())
    assert "".join(text[start:end] for start, end in spelled.spans) == text
    assert len(spelled.spans) == spelled.length - spelled.before
    assert spelled.tokens[spelled.before :] == tuple(tokenizer()(text, add_special_tokens=False).input_ids)


def test_a_character_that_several_tokens_spell_belongs_to_the_last() -> None:
    [text] = spell(["a é 😀x"])
    own = [text.text[start:end] for start, end in text.spans]
    assert own == ["a", " ", "", "é", " ", "", "", "", "😀", "x"]


def test_white_space_that_a_tokenizer_passes_over_goes_to_the_next_token() -> None:
    class Trimming:
        """A tokenizer that leaves spaces out of its offsets, as some do."""

        eos_token_id, is_fast = 0, True

        def __call__(self, text: str, **_: Any) -> Any:
            words = [(0, 1)] if text == "x" else [(2, 4), (5, 6), (8, 9)]
            return type("Encoded", (), {"input_ids": [5] * len(words), "offset_mapping": words})()

    text = Encoder(Trimming(), Prompt()).spell(Text("t", "  It is  . "))
    assert [text.text[start:end] for start, end in text.spans] == ["  It", " i", "s  . "]


@pytest.mark.parametrize("template", ["text", "text-listed", "letters", "paper"])
@pytest.mark.parametrize("terminator", ["newline", "end_of_text"])
def test_solved_questions_are_spelled_as_they_are_trained_on_and_scored(template: Any, terminator: Any) -> None:
    known = [question for question in QUESTIONS if question.answer is not None]
    encoder = Encoder(byte_level_tokenizer(), Prompt(template=template, terminator=terminator))
    spelled, dropped = encoder.solved(known, None, "error")
    assert dropped == []
    trees, sequences = encoder.trees(known, None, "error")[0], encoder.sequences(known, None, "error")[0]
    for text, tree, sequence in zip(spelled, trees, sequences, strict=True):
        assert text.tokens == sequence.tokens
        assert text.answer is not None
        assert tree.answer is not None
        assert text.tokens[text.answer.start : text.answer.stop] == tree.branches[tree.answer]
        assert "".join(text.text[start:end] for start, end in text.spans) == text.text


def test_solved_questions_that_are_too_long_are_cut_or_dropped_as_trees_are() -> None:
    long = replace(QUESTIONS[3], answer=0)
    encoder = Encoder(byte_level_tokenizer(), Prompt())
    [whole], _ = encoder.solved([long], None, "error")
    limit = whole.length - 12
    [cut], dropped = encoder.solved([long], limit, "shorten_context")
    assert not dropped
    assert cut.length <= limit
    assert whole.text.endswith(cut.text)
    assert encoder.solved([long, QUESTIONS[0]], limit, "drop")[1] == [long]
    with pytest.raises(UserError, match="no answer"):
        encoder.solved([Question("q", "What?", ("a", "b"))], None, "error")


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        eos_token_id, is_fast = 0, False

        def __call__(self, text: str, **_: Any) -> Any:
            return type("Encoded", (), {"input_ids": [5]})()

    with pytest.raises(UserError, match="tokenizer"):
        Encoder(Slow(), Prompt()).spell(Text("t", "a"))


def test_a_model_whose_body_cannot_be_told_apart_is_read_all_the_same() -> None:
    """A hidden body, and no `logits_to_keep`: whole forward passes, the same numbers."""

    class Closed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model("gpt2")
            self.config = self.inner.config
            self.decoder = torch.nn.Identity()

        def get_decoder(self) -> torch.nn.Module:
            return self.decoder

        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    engine = Engine(Backbone(Closed().requires_grad_(False), byte_level_tokenizer(), {}, None), None, 1000)
    texts = spell(TEXTS[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "LOGITS_AT_ONCE", 400 * 2 * 9)
        t = read(engine, (), texts, None, 1)
    assert_naive(world("gpt2"), (), texts, t)
