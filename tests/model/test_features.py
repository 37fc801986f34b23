"""What the base says of a prompt is what the library's own model says of it, alone and unpadded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import SHORTEST, bound, plain, trees, world

from families import FAMILIES
from ripieno.model import features
from ripieno.model.features import read_prompts
from ripieno.model.padded import PaddedEngine
from ripieno.model.scoring import Engine
from ripieno.model.trees import TokenTree
from ripieno.progress import Progress

every_family = pytest.mark.parametrize("family", FAMILIES)
PROMPTS = (*trees(), SHORTEST)


@torch.inference_mode()
def truth(family: str, tree: TokenTree) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return a prompt's summed NLL, its last hidden state [D] after the final norm and the logits there [V]."""
    output = plain(family, None)(input_ids=torch.tensor([tree.question]), output_hidden_states=True)
    log_probs = output.logits[0].double().log_softmax(-1)[:-1]
    nll = -log_probs[range(len(tree.question) - 1), tree.question[1:]].sum().item()
    return nll, output.hidden_states[-1][0, -1], output.logits[0, -1]


@every_family
def test_prompts_read_as_by_the_plain_model(family: str) -> None:
    """Whatever shares the pass: lengths from 1 to a hundred, in an order other than their lengths'."""
    w = world(family)
    head = plain(family, None).get_output_embeddings()
    found = read_prompts(Engine(w.backbone, w.stack, 500), PROMPTS)
    assert found.tokens.tolist() == [len(tree.question) for tree in PROMPTS]
    assert found.nll[-1] == 0  # one token, of which nothing is predicted
    for n, tree in enumerate(PROMPTS):
        nll, hidden, logits = truth(family, tree)
        allowed = bound(torch.tensor(nll)).item()
        assert found.nll[n] * max(len(tree.question) - 1, 1) == pytest.approx(nll, abs=allowed)
        # Some hundred roundings of float32 (6e-8 each) of numbers of the state's own size: padding and order of sums.
        size = hidden.abs().max().item()
        np.testing.assert_allclose(found.hidden[n], hidden.numpy(), atol=1e-5 * size, rtol=0)
        with torch.inference_mode():
            read = head(torch.tensor(found.hidden[n]))
        if family not in ("gemma2", "granite", "cohere2"):  # which cap or scale the logits after the output layer
            np.testing.assert_allclose(read.numpy(), logits.numpy(), atol=1e-5 * logits.abs().max().item(), rtol=0)


@every_family
def test_another_last_token_moves_the_state_by_far_more(family: str) -> None:
    tree = trees()[5]
    changed = TokenTree(0, (*tree.question[:-1], 9), tree.branches, tree.choice_bytes, None)
    hidden, other = (truth(family, t)[1] for t in (tree, changed))
    assert (hidden - other).abs().max() > 1e-2 * hidden.abs().max()


def test_members_that_are_loaded_change_nothing() -> None:
    w = world("llama")
    found = read_prompts(Engine(w.backbone, w.stack, 500), PROMPTS)
    before = read_prompts(Engine(w.backbone, None, 500), PROMPTS)
    assert np.array_equal(found.hidden, before.hidden)
    assert np.array_equal(found.nll, before.nll)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_the_budget_changes_no_more_than_rounding(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt a pass, all in one pass, and passes that the logits' size cuts."""
    w = world(family)
    found = [read_prompts(Engine(w.backbone, w.stack, budget), PROMPTS) for budget in (1, 100_000)]
    sizes: list[int] = []
    plain_pass = PaddedEngine.text_likelihoods
    monkeypatch.setattr(features, "LOGITS", 400 * 150)

    def counted(engine: PaddedEngine, members: object, rows: list[list[object]], seeds: None) -> object:
        sizes.append(len(rows[0]) * max(row.length for row in rows[0]))  # type: ignore[attr-defined]
        return plain_pass(engine, members, rows, seeds)  # type: ignore[arg-type]

    monkeypatch.setattr(PaddedEngine, "text_likelihoods", counted)
    found.append(read_prompts(Engine(w.backbone, w.stack, 100_000), PROMPTS))
    assert len(sizes) > 1
    assert max(sizes) <= 150
    for one, other in ((found[0], found[1]), (found[1], found[2])):
        # Each within its bound of the truth (above).
        np.testing.assert_allclose(one.hidden, other.hidden, atol=2e-5 * np.abs(one.hidden).max(), rtol=0)
        np.testing.assert_allclose(one.nll, other.nll, atol=2e-5 + 2e-7 * one.nll.max(), rtol=0)


def test_progress_counts_prompts_and_the_hook_is_gone() -> None:
    w = world("llama")
    units: list[int] = []
    progress = Progress(quiet=True)
    progress.advance = units.append  # type: ignore[method-assign]
    read_prompts(Engine(w.backbone, w.stack, 300), PROMPTS, progress)
    assert len(units) > 1
    assert sum(units) == len(PROMPTS)
    assert not w.backbone.model.get_output_embeddings()._forward_pre_hooks
