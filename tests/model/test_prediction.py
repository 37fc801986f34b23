"""The table of predictions against the plain model's full softmax, question by question."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from naive import QUESTIONS, bound, naive, trees, world

from families import byte_level_tokenizer
from ripieno.config import Evaluation, Prompt
from ripieno.data.question import Question
from ripieno.model.prediction import Asked, predict
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder
from ripieno.predictions import Predictions


def ask(
    positions: tuple[int, ...],
    template: str = "text",
    family: str = "llama",
    budget: int = 300,
    members_per_pass: int = 2,
    normalisation: Any = "sum",
    evaluation: Evaluation | None = None,
) -> Predictions:
    w = world(family)
    asked = Asked(QUESTIONS, trees(template))
    prompt = Prompt(template=template, normalisation=normalisation)
    engine = Engine(w.backbone, w.stack, budget)
    engine.probe()
    return predict(engine, positions, asked, prompt, evaluation or Evaluation(), members_per_pass)


@pytest.mark.parametrize("normalisation", ["sum", "token", "byte"])
@pytest.mark.parametrize("positions", [(), (2, 0, 1)])
def test_text_choices(positions: tuple[int, ...], normalisation: str) -> None:
    """Every member's own numbers, questions in the order asked although they run sorted by length."""
    found = ask(positions, normalisation=normalisation)
    assert found.question_ids == tuple(q.id for q in QUESTIONS)
    assert found.members == (positions or (0,))  # the base alone answers as member 0
    assert found.targets.tolist() == [0, 1, -1, 1, 2, 3]
    assert found.mask.sum(axis=1).tolist() == [len(q.choices) for q in QUESTIONS]
    assert found.outside_mass is found.letter_log_probs is found.top_tokens is None
    assert found.scores is not None
    assert found.tokens is not None
    assert found.bytes is not None
    for n, (question, tree) in enumerate(zip(QUESTIONS, trees(), strict=True)):
        K = len(question.choices)
        assert found.tokens[n, :K].tolist() == [len(branch) for branch in tree.branches]
        assert found.bytes[n, :K].tolist() == [len(choice.encode()) for choice in question.choices]
        for m, member in enumerate(positions or (None,)):
            scores, _ = naive("llama", member, tree)
            assert (np.abs(found.scores[m, n, :K] - scores.numpy()) <= bound(scores).numpy()).all()
            lengths = {"sum": np.ones(K), "token": found.tokens[n, :K], "byte": found.bytes[n, :K]}[normalisation]
            log_probs = (scores / torch.tensor(lengths)).log_softmax(-1)
            # A difference of two scores, each within its bound.
            assert (np.abs(found.log_probs[m, n, :K] - log_probs.numpy()) <= 2 * bound(scores).max().item()).all()
            assert (found.log_probs[m, n, K:] == -np.inf).all()
            assert (found.scores[m, n, K:] == -np.inf).all()
    np.testing.assert_allclose(found.probs.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("template", ["letters", "paper"])
@pytest.mark.parametrize("positions", [(), (1, 2, 0)])
def test_letters(template: str, positions: tuple[int, ...]) -> None:
    """Letters, what lies outside them, the fixed a to e and the whole vocabulary: all of one softmax."""
    evaluation = Evaluation(fixed_letters=True, store_top="all")
    found = ask(positions, template, evaluation=evaluation)
    assert found.tokens is found.bytes is None
    assert found.scores is not None
    assert found.outside_mass is not None
    assert found.letter_log_probs is not None
    assert found.top_tokens is not None
    assert found.top_log_probs is not None
    five = trees(template)[2]
    fixed = [branch[0] for branch in five.branches]  # the question with choices a to e
    for n, tree in enumerate(trees(template)):
        letters = [branch[0] for branch in tree.branches]
        assert letters == fixed[: len(letters)]
        for m, member in enumerate(positions or (None,)):
            _, answer = naive("llama", member, tree)
            allowed = bound(answer).max().item()
            truth = answer.numpy()
            np.testing.assert_allclose(found.scores[m, n, : len(letters)], truth[letters], atol=allowed, rtol=0)
            normalised = answer[letters].log_softmax(-1).numpy()
            np.testing.assert_allclose(found.log_probs[m, n, : len(letters)], normalised, atol=2 * allowed, rtol=0)
            outside = 1 - np.exp(truth[letters]).sum()
            np.testing.assert_allclose(found.outside_mass[m, n], outside, atol=allowed, rtol=0)
            np.testing.assert_allclose(found.letter_log_probs[m, n], truth[fixed], atol=allowed, rtol=0)
            tokens, log_probs = found.top_tokens[m, n], found.top_log_probs[m, n]
            assert sorted(tokens) == list(range(len(truth)))
            assert (np.diff(log_probs) <= 0).all()
            np.testing.assert_allclose(log_probs, truth[tokens], atol=allowed, rtol=0)


def test_top_tokens_are_the_first_of_all() -> None:
    everything = ask((0, 1), "letters", evaluation=Evaluation(store_top="all"))
    some = ask((0, 1), "letters", evaluation=Evaluation(store_top=7))
    assert some.top_tokens is not None
    assert everything.top_tokens is not None
    assert some.letter_log_probs is None
    assert np.array_equal(some.top_tokens, everything.top_tokens[..., :7])


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "mamba"])
def test_neither_members_per_pass_nor_the_token_budget_change_results(family: str) -> None:
    truth = ask((0, 1, 2), family=family, members_per_pass=1, budget=1)
    for members_per_pass, budget in ((2, 500), (3, 100_000), (5, 100)):
        found = ask((0, 1, 2), family=family, members_per_pass=members_per_pass, budget=budget)
        present = np.broadcast_to(found.mask, found.log_probs.shape)
        assert truth.scores is not None
        assert found.scores is not None
        # Each within 1e-5 of the plain model's, relative parts of these sizes included.
        np.testing.assert_allclose(found.scores[present], truth.scores[present], atol=2e-5, rtol=2e-7)
        np.testing.assert_allclose(found.log_probs[present], truth.log_probs[present], atol=5e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
@pytest.mark.parametrize("positions", [(), (2, 0, 1)])
def test_unconditional_scores_are_those_after_the_bare_cue(family: str, positions: tuple[int, ...]) -> None:
    """As the plain model scores "Answer: CHOICE\\n" without any question, each question's own choices in its row."""
    questions = (*QUESTIONS, Question("again", "Other words, the same choices?", QUESTIONS[1].choices, 0))
    encoder = Encoder(byte_level_tokenizer(), Prompt(template="text-listed"))
    bare = encoder.bare(questions)
    cue = byte_level_tokenizer()("Answer:").input_ids
    assert all(list(tree.question) == cue for tree in bare)
    assert bare[1].branches == encoder.trees(questions, None, "error")[0][1].branches
    w = world(family)
    engine = Engine(w.backbone, w.stack, 60)
    engine.probe()
    asked = Asked(questions, encoder.trees(questions, None, "error")[0], bare)
    plainly = Asked(asked.questions, asked.trees)
    prompt, evaluation = Prompt(template="text-listed"), Evaluation(unconditional=True)
    found = predict(engine, positions, asked, prompt, evaluation, 2)
    assert found.unconditional is not None
    assert found.unconditional.shape == found.log_probs.shape
    for n, tree in enumerate(bare):
        K = len(tree.branches)
        for m, member in enumerate(positions or (None,)):
            scores, _ = naive(family, member, tree)
            assert (np.abs(found.unconditional[m, n, :K] - scores.numpy()) <= bound(scores).numpy()).all()
        assert not found.unconditional[:, n, K:].any()
    assert np.array_equal(found.unconditional[:, 1], found.unconditional[:, -1])
    # It is stored beside the predictions and moves none of them.
    without = predict(engine, positions, plainly, prompt, Evaluation(), 2)
    assert without.unconditional is None
    assert np.array_equal(found.log_probs, without.log_probs)
