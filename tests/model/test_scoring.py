"""Scores are those of the plain model, one sequence at a time, whatever shares the pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from naive import (
    QUESTIONS,
    SHORTEST,
    WAYS,
    World,
    bound,
    engine_of,
    naive,
    naive_scores,
    new_world,
    plain,
    trees,
    world,
)
from torch import Tensor
from transformers import GPT2LMHeadModel

from families import FAMILIES, byte_level_tokenizer, tiny_model
from ripieno.config import Prompt
from ripieno.data.question import Question
from ripieno.model.backbone import Backbone
from ripieno.model.packing import lay_out, shared_fronts
from ripieno.model.scoring import Engine, Scores, choice_log_probs
from ripieno.model.trees import Encoder, TokenSequence, TokenTree

# Recurrent states cannot branch, and ALiBi's distances come from a mask of columns: these take whole sequences.
TREES = [family for family in FAMILIES if family not in ("bloom", "mamba")]
# Falcon computes its attention itself.
PACKED = [family for family in TREES if family != "falcon"]
# The token budget, the way, and how many passes six questions of three members take.
BUDGETS = [
    (1, "padded", 6),
    (400, "padded", 3),
    (900, "padded", 2),
    (100_000, "padded", 1),
    (2000, "whole", 2),
    (100_000, "whole", 1),
    (1, "packed", 6),
    (400, "packed", 2),
    (100_000, "packed", 1),
]
every_family = pytest.mark.parametrize("family", FAMILIES)
every_tree_family = pytest.mark.parametrize("family", TREES)


def ways(family: str) -> tuple[str, ...]:
    """The engines that serve a family: every one that can must give the same."""
    return WAYS if family in PACKED else WAYS[1:] if family in TREES else WAYS[2:]


def assert_naive(w: World, members: tuple[int, ...], rows: list[list[TokenTree]], engine: Engine | None = None) -> None:
    for some in [engine] if engine else [engine_of(w, way) for way in ways(w.family)]:
        with torch.inference_mode():
            assert_scores(w, members, rows, some.score(members, rows))


def assert_scores(w: World, members: tuple[int, ...], rows: list[list[TokenTree]], scores: Scores) -> None:
    for p, member in enumerate(members or (None,)):
        for n, tree in enumerate(rows[p]):
            choices, answer = naive(w.family, member, tree)
            assert ((scores.choices[p, n, : len(choices)] - choices).abs() <= bound(choices)).all()
            assert ((scores.answer[p, n] - answer).abs() <= bound(answer)).all()
            assert (scores.choices[p, n, len(choices) :] == -torch.inf).all()


@every_family
@pytest.mark.parametrize("template", ["text", "letters"])
def test_base_alone_and_one_member_score_as_the_plain_model(family: str, template: str) -> None:
    for members in ((), (1,)):
        assert_naive(world(family), members, [list(trees(template)[1:])])


@every_family
def test_members_in_one_pass_score_their_own_questions_as_the_plain_model(family: str) -> None:
    """Other questions, other K and other lengths a member: nothing of one member reaches another."""
    a, b, c, d, e, f = trees()
    assert_naive(world(family), (0, 1, 2), [[a, b, SHORTEST], [f, b, e], [d, SHORTEST, c]])
    assert_naive(world(family), (2, 0), [list(trees("letters")[:2]), list(trees("paper")[4:])])


@every_family
def test_running_text_scores_as_the_plain_model(family: str) -> None:
    """The next_token loss reads the same numbers: every token but the first, padding counted nowhere."""
    rows = [[tree.question + tree.branches[0] for tree in pair] for pair in (trees()[:2], trees()[3:5])]
    rows[1].append((5,))  # nothing of it is predicted
    rows[0].append((5, 6))
    w = world(family)
    sequences = [[TokenSequence(0, tokens) for tokens in of_member] for of_member in rows]
    for way in ways(family):
        with torch.inference_mode():
            found = engine_of(w, way).text_likelihoods((2, 1), sequences)
        for p, member in enumerate((2, 1)):
            for n, tokens in enumerate(rows[p]):
                with torch.inference_mode():
                    logits = plain(family, member)(input_ids=torch.tensor([tokens])).logits[0]
                truth = logits.double().log_softmax(-1)[range(len(tokens) - 1), tokens[1:]]
                assert (found[p, n] - truth.sum()).abs() <= bound(truth).sum()


@every_family
def test_a_token_ten_places_back_moves_the_scores(family: str) -> None:
    """The tests above have teeth: what a wrong mask or position would change is far above their bounds."""
    tree = trees()[5]
    changed = TokenTree(0, (*tree.question[:-10], 9, *tree.question[-9:]), tree.branches, tree.choice_bytes, None)
    difference = naive(family, None, tree)[0] - naive(family, None, changed)[0]
    assert (difference.abs() > 100 * bound(naive(family, None, tree)[0])).any()


@every_family
def test_probe_packs_where_that_is_right(family: str) -> None:
    probed = world(family).engine
    assert (probed.packed is not None) == (family in PACKED)
    assert probed.whole_sequences == (family not in TREES)
    assert (probed.notice is None) == (family in PACKED)


class Forgetful(GPT2LMHeadModel):
    """A model whose positions count columns, padding and other branches included."""

    def forward(self, *, position_ids: Tensor | None = None, **inputs: Any) -> Any:
        return super().forward(**inputs)


def test_probe_falls_back_for_a_model_that_does_as_it_likes() -> None:
    model = Forgetful(tiny_model("gpt2").config).eval()
    engine = Engine(Backbone(model, byte_level_tokenizer(), {}, None), None, 100_000)
    engine.probe()
    assert engine.whole_sequences
    scores = engine.score((), [list(trees())]).choices[0]
    for n, tree in enumerate(trees()):
        truth = naive_scores(model, tree)[0]
        assert ((scores[n, : len(truth)] - truth).abs() <= bound(truth)).all()


@every_tree_family
def test_all_engines_agree_with_their_gradients(family: str) -> None:
    w = world(family)
    rows = [list(trees()[:3]), [SHORTEST, *trees()[3:5]], list(trees()[3:])]
    found = []
    for way in ways(family):
        scores = engine_of(w, way).score((2, 0, 1), rows)
        losses = -choice_log_probs(scores.choices, rows, "token")[..., 0].sum(1) - scores.answer[..., 3].sum(1)
        parameters = [w.stack.parameters(position) for position in (2, 0, 1)]
        gradients = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, p, retain_graph=True)])
            for loss, p in zip(losses, parameters, strict=True)
        ]
        found.append((scores, gradients))
    of_whole, whole_gradients = found[-1]
    present = torch.isfinite(of_whole.choices)
    for scores, gradients in found[:-1]:
        # Twice the bound: each lies within one of the truth.
        assert ((scores.choices - of_whole.choices)[present].abs() <= 2 * bound(of_whole.choices[present])).all()
        for ours, theirs in zip(gradients, whole_gradients, strict=True):
            # Some hundred tokens' gradients are summed, each through about 20 products of float32 (6e-8): 1e-6 a way.
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_gradients_of_members_that_share_a_pass_are_those_of_each_alone() -> None:
    w = world("llama")
    rows = [list(trees()[:2]), list(trees()[2:4]), list(trees()[4:])]
    together = w.engine.score((0, 1, 2), rows).choices[..., 0].sum(1)
    for p in range(3):
        parameters = w.stack.parameters(p)
        alone = w.engine.score((p,), [rows[p]]).choices[..., 0].sum()
        for ours, theirs in zip(
            torch.autograd.grad(together[p], parameters, retain_graph=True),
            torch.autograd.grad(alone, parameters),
            strict=True,
        ):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    others = w.stack.parameters(1)
    of_others = torch.autograd.grad(together[0], others, allow_unused=True, materialize_grads=True)
    assert not any(gradient.any() for gradient in of_others)


@pytest.mark.parametrize(("budget", "way", "count"), BUDGETS)
def test_cutting_by_the_token_budget_changes_nothing_beyond_rounding(budget: int, way: str, count: int) -> None:
    """Every member's every question once, no pass above the budget unless one question alone is."""
    w = world("qwen3")
    rows = [list(trees())[p:] + list(trees()[:p]) for p in range(3)]
    engine = engine_of(w, way, budget)
    parts = engine.parts(rows)
    assert len(parts) == count
    for p in range(3):
        assert sorted(tree.key for part in parts for tree in part[p]) == sorted(tree.key for tree in rows[p])
    for part in parts:
        assert_naive(w, (0, 1, 2), part, engine)
        flat = [tree for of_member in part for tree in of_member]
        if way == "whole":
            most = 3 * max(sum(len(tree.branches) for tree in of_member) for of_member in part)
            tokens = most * max(tree.length for tree in flat)
        elif way == "padded":
            tokens = len(flat) * (max(len(tree.question) for tree in flat) + max(tree.fed for tree in flat))
        else:
            fronts = [shared_fronts(of_member) for of_member in part]
            tokens = lay_out(part, fronts, torch.device("cpu")).tokens.numel()
        assert tokens <= budget or len(part[0]) == 1


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "gpt_oss", "cohere2"])
def test_sliding_windows_shorter_than_the_question_are_applied(family: str) -> None:
    """Windows of 8 tokens: the scores are the plain model's (above), and a wide window gives others."""
    wide = new_world(family, sliding_window=512)
    tree = trees()[3]
    assert len(tree.question) > 3 * FAMILIES[family]["sliding_window"]
    with torch.inference_mode():
        narrow_scores, wide_scores = (w.engine.score((), [[tree]]).choices for w in (world(family), wide))
    assert (narrow_scores - wide_scores).abs().max() > 1e-2


@pytest.mark.parametrize("right", ["New York", "New York City"])
def test_a_choice_that_is_anothers_beginning_can_win_and_can_lose(right: str) -> None:
    """A model that learnt one of the two prefers it, through the terminator: "York" goes on, or the line ends."""
    question = Question("q", "Which city?", ("New York", "New York City"))
    encoder = Encoder(byte_level_tokenizer(), Prompt(template="text"))
    [tree], _ = encoder.trees([question], None, "error")
    k = question.choices.index(right)
    model = tiny_model("llama")
    sequence = torch.tensor([tree.question + tree.branches[k]])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        model(input_ids=sequence, labels=sequence).loss.backward()
        optimizer.step()
    engine = Engine(Backbone(model, encoder.tokenizer, {}, None), None, 1000)
    scores = engine.score((), [[tree]]).choices
    for normalisation in ("sum", "token", "byte"):
        assert choice_log_probs(scores, [[tree]], normalisation)[0, 0].argmax() == k


def test_choice_log_probs_are_normalised_over_the_questions_own_choices() -> None:
    scores = torch.tensor([[[-6.0, -2.0, -torch.inf], [-3.0, -1.0, -4.0]]])
    first = TokenTree(0, (1,), ((1, 2, 3), (4,)), (2, 8), None)
    second = TokenTree(0, (1,), ((1,), (2, 3), (4, 5, 6, 7)), (1, 1, 2), None)
    expected = {
        "sum": [[-6.0, -2.0, -torch.inf], [-3.0, -1.0, -4.0]],
        "token": [[-2.0, -2.0, -torch.inf], [-3.0, -0.5, -1.0]],
        "byte": [[-3.0, -0.25, -torch.inf], [-3.0, -1.0, -2.0]],
    }
    for normalisation, values in expected.items():
        ours = choice_log_probs(scores, [[first, second]], normalisation)  # type: ignore[arg-type]
        truth = torch.tensor([values], dtype=torch.float64).log_softmax(-1)
        # Two float32 operations on numbers of about 6: 6 * 2^-23 each.
        torch.testing.assert_close(ours.double(), truth, atol=2e-6, rtol=0)


def test_bfloat16_base_gives_float32_scores_near_those_of_float32() -> None:
    w = new_world("llama")
    rows = [list(trees())] * 3
    with torch.inference_mode():
        truth = w.engine.score((0, 1, 2), rows).choices
        w.backbone.model.to(torch.bfloat16)
        for position in range(3):
            for parameter in w.stack.parameters(position):
                parameter.data = parameter.data.float()  # .to() above took the adapters along
        engine = Engine(w.backbone, w.stack, 100_000)
        engine.probe()
        scores = engine.score((0, 1, 2), rows)
    assert not engine.whole_sequences
    assert scores.choices.dtype == scores.answer.dtype == torch.float32
    present = torch.isfinite(truth)
    # bfloat16 keeps 8 bits: a logit of size 4 after some 10 roundings is off by 4 * 2^-8 * sqrt(10) = 0.05 a token.
    tokens = torch.tensor([len(branch) for tree in trees() for branch in tree.branches] * 3)
    assert ((scores.choices - truth)[present].abs() <= 0.1 * tokens).all()
    assert not torch.equal(scores.choices[present], scores.choices[present].bfloat16().float())


def test_the_answers_row_is_in_float32_with_a_bfloat16_base() -> None:
    """Log-probabilities of the whole vocabulary sum to one as closely as float32 allows, not as bfloat16 does."""
    model = tiny_model("llama").to(torch.bfloat16)
    engine = Engine(Backbone(model, byte_level_tokenizer(), {}, None), None, 100_000)
    with torch.inference_mode():
        answer = engine.score((), [list(trees("letters"))]).answer
    # 400 float32 log-probabilities of about 6, each within 6 * 2^-24.
    torch.testing.assert_close(answer.double().exp().sum(-1), torch.ones(1, len(QUESTIONS)).double(), atol=1e-6, rtol=0)
