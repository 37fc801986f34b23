"""The truth to compare with: plain models, one sequence at a time, the adapters merged into the weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from families import byte_level_tokenizer, tiny_model
from ripieno.config import Adapter, Prompt
from ripieno.data.question import Question
from ripieno.model.adapters import AdapterStack
from ripieno.model.backbone import Backbone
from ripieno.model.packed import PackedEngine
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder, TokenTree

# K from 2 to 5, answers of one token and of many, one the beginning of another, a long question and short ones.
QUESTIONS = (
    Question("q0", "Where would you put a plant?", ("near a window of the house", "near", "New York", "it"), 0),
    Question("q1", "Which?", ("New York", "New York City"), 1),
    Question("q2", "Which animal has feathers?", ("a cat", "a bird", "a fish", "no", "yes, the bird"), None),
    Question(
        "q3", "Does it depend on the season?", ("it depends on the weather and the season", "b"), 1, "It is day. " * 9
    ),
    Question("q4", "What?", ("a", "b", "c"), 2),
    Question("q5", "Which day of the season is it in New York City?", ("one", "two", "three", "four"), 3),
)
# A question of a single token beside others of a hundred.
SHORTEST = TokenTree(key=7, question=(5,), branches=((6, 7, 8), (9,)), choice_bytes=(3, 1), answer=0)


@cache
def trees(template: str = "text") -> tuple[TokenTree, ...]:
    """Return the questions' token trees."""
    return tuple(Encoder(byte_level_tokenizer(), Prompt(template=template)).trees(QUESTIONS, None, "error")[0])


@dataclass(frozen=True)
class World:
    """A tiny base with three members whose updates are as large as its weights, ready to score."""

    family: str
    backbone: Backbone
    stack: AdapterStack
    engine: Engine


def new_world(family: str, adapter: Adapter | None = None, **changes: Any) -> World:
    """Build a world that a test may change."""
    model = tiny_model(family, **changes).requires_grad_(False)
    backbone = Backbone(model, byte_level_tokenizer(), {}, None)
    stack = AdapterStack(model, adapter or Adapter(rank=2, alpha=4), (0, 1, 2))
    for position in range(3):
        stack.initialise(position, position)
        generator = torch.Generator().manual_seed(position)
        for parameter in stack.parameters(position)[1::2]:  # a B of zero would hide what A does
            parameter.data.normal_(0, 0.1, generator=generator)
    engine = Engine(backbone, stack, batch_tokens=100_000)
    engine.probe()
    return World(family, backbone, stack, engine)


world = cache(new_world)

WAYS = ("packed", "padded", "whole")


def engine_of(w: World, way: str, batch_tokens: int = 100_000) -> Engine:
    """Return a world's engine that goes one of the `WAYS`, whatever its probe would decide."""
    engine = Engine(w.backbone, w.stack, batch_tokens)
    engine.packed = PackedEngine(w.backbone, w.stack) if way == "packed" else None
    engine.padded.whole_sequences = way == "whole"
    return engine


@cache
def plain(family: str, member: int | None) -> nn.Module:
    """Return the library's own model, a member's update merged into its float32 weights; None is the base."""
    model = tiny_model(family)
    if member is not None:
        stack = world(family).stack
        for name, layer in stack.layers.items():
            update = layer.scale * layer.B[member].detach() @ layer.A[member].detach()
            linear = model.get_submodule(name)
            linear.weight.data += update.mT if isinstance(linear, Conv1D) else update
    return model


@torch.inference_mode()
def naive_scores(model: nn.Module, tree: TokenTree) -> tuple[Tensor, Tensor]:
    """Return float64 [K] and [V]: the branches' log-likelihoods, and the log-probabilities at the answer."""
    sums = []
    answer = None
    for branch in tree.branches:
        logits = model(input_ids=torch.tensor([tree.question + branch])).logits[0]
        log_probs = logits.double().log_softmax(-1)[len(tree.question) - 1 : -1]
        sums.append(log_probs[range(len(branch)), branch].sum())
        answer = log_probs[0] if answer is None else answer
    assert answer is not None
    return torch.stack(sums), answer


@cache
def naive(family: str, member: int | None, tree: TokenTree) -> tuple[Tensor, Tensor]:
    """Return `naive_scores` of a member of a family's world."""
    return naive_scores(plain(family, member), tree)


def bound(truth: Tensor) -> Tensor:
    """Return the contract's bound on a log-likelihood's rounding: float32 keeps about 7 digits of each token's."""
    return 1e-5 + 1e-7 * truth.abs()
