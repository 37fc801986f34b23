"""The embedded SmolLM2: what holds for tiny random models holds for one of 30 layers that knows some English."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ripieno.config import Base, Evaluation, Prompt
from ripieno.data import splits
from ripieno.data.question import Question
from ripieno.model import backbone
from ripieno.model.backbone import Backbone
from ripieno.model.prediction import Asked, predict
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder, TokenTree
from ripieno.predictions import Predictions


@pytest.fixture(scope="module")
def smollm() -> Backbone:
    return backbone.load(Base())


@pytest.fixture(scope="module")
def double(smollm: Backbone) -> nn.Module:
    """The same weights in float64: the truth that float32 rounds."""
    return copy.deepcopy(smollm.model).double()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    every = splits.load("commonsense_qa/validation").questions
    return sorted(every, key=lambda q: (len(q.question + "".join(q.choices)), q.id))[40:42]


def ask(
    smollm: Backbone, questions: list[Question], prompt: Prompt, evaluation: Evaluation
) -> tuple[list[TokenTree], Predictions]:
    """Return the questions' trees, and what the base answers."""
    engine = Engine(smollm, None, 1024)
    engine.probe()
    assert engine.packed  # it takes the fast way
    trees, _ = Encoder(smollm.tokenizer, prompt).trees(questions, None, "error")
    return trees, predict(engine, (), Asked(questions, trees), prompt, evaluation, 1)


@torch.inference_mode()
def naive(model: nn.Module, tree: TokenTree) -> Tensor:
    """Return the choices' log-likelihoods, one sequence at a time from full logits."""
    sums = []
    for branch in tree.branches:
        logits = model(input_ids=torch.tensor([tree.question + branch])).logits[0]
        log_probs = logits.double().log_softmax(-1)[len(tree.question) - 1 : -1]
        sums.append(log_probs[range(len(branch)), branch].sum())
    return torch.stack(sums)


def test_text_scores_are_the_plain_models(smollm: Backbone, double: nn.Module, questions: list[Question]) -> None:
    """Ours lie about as near to the float64 truth as the library's own float32 does.

    DESIGN's bound (1e-5 + 1e-7 a unit) holds for two layers; 30 layers of float32 are off by about 1e-5 to 4e-5
    themselves, so the plain computation's own error is the measure here, twice it for the luck of some ten numbers.
    """
    trees, p = ask(smollm, questions, Prompt(template="text"), Evaluation())
    assert p.scores is not None
    truth = [naive(double, tree) for tree in trees]
    plain = [naive(smollm.model, tree) for tree in trees]
    ours = [torch.tensor(p.scores[0, n, : len(t)]) for n, t in enumerate(truth)]
    error, allowed = (torch.cat([s - t for s, t in zip(scores, truth, strict=True)]) for scores in (ours, plain))
    assert error.norm() <= 2 * allowed.norm() + 1e-5
    assert allowed.abs().max() < 1e-4  # and that measure itself is small
    assert (torch.cat(truth).diff().abs() > 1e-2).all()  # choices differ by far more


def test_letters_are_the_plain_models_row_at_the_answer(smollm: Backbone, questions: list[Question]) -> None:
    evaluation = Evaluation(fixed_letters=True, store_top="all")
    [tree], p = ask(smollm, questions[:1], Prompt(template="letters"), evaluation)
    assert smollm.tokenizer.convert_ids_to_tokens([branch[0] for branch in tree.branches]) == [f"Ġ{x}" for x in "ABCDE"]
    with torch.inference_mode():
        row = smollm.model(input_ids=torch.tensor([tree.question])).logits[0, -1].double().log_softmax(-1)
    letters = row[[branch[0] for branch in tree.branches]]
    assert p.letter_log_probs is not None
    assert p.outside_mass is not None
    assert p.top_tokens is not None
    # Two float32 computations of 30 layers, each off by some 1e-5 (see above).
    torch.testing.assert_close(torch.tensor(p.letter_log_probs[0, 0]), letters, atol=1e-4, rtol=0)
    assert p.outside_mass[0, 0] == pytest.approx(1 - letters.exp().sum().item(), abs=1e-4)
    assert p.top_tokens[0, 0, 0] == row.argmax()
