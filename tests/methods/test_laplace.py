"""The Laplace approximation against its definitions, with dense matrices on a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import QUESTIONS, config, trainer
from torch import Tensor

from ripieno.errors import UserError
from ripieno.methods.laplace import (
    Diagonal,
    Kronecker,
    Laplace,
    _Sum,
    best_precision,
    covariances,
    draw_scores,
    largest,
)
from ripieno.model.jacobian import gradients
from ripieno.model.scoring import Engine, choice_log_probs
from ripieno.model.trees import TokenTree
from ripieno.predictions import Predictions

# Sums of some hundred float32 products, in another order.
CLOSE = 1e-5
ONE_TOKEN = [TokenTree(0, (17,), ((40,), (50,), (60,)), (1, 1, 1), 0)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A tiny model with one member whose update is not 0."""
    made = trainer(tmp_path_factory.mktemp("laplace"), config(), [0])
    made.stack.initialise(0, 1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in made.stack.layers.values():
            layer.B[0].copy_(torch.randn(layer.B[0].shape, generator=generator) * 0.3)
    return made.engine


@pytest.fixture(scope="module")
def trees(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[TokenTree]:
    encoder = trainer(tmp_path_factory.mktemp("trees"), config()).examples.encoder
    return list(encoder.trees(QUESTIONS[:5], None, "error")[0])


def dense(engine: Engine, tree: TokenTree) -> tuple[Tensor, Tensor]:
    """Return a question's contrasts' gradients [C, P], and Lambda [C, C], by autograd and the packed engine."""
    assert engine.stack is not None
    parameters = engine.stack.parameters(0)
    log_probs = choice_log_probs(engine.score([0], [[tree]]).choices, [[tree]], "sum")[0, 0]
    rows = []
    for k in range(1, len(log_probs)):
        grads = torch.autograd.grad(log_probs[k] - log_probs[0], parameters, retain_graph=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]).double())
    p = log_probs.detach().double().exp()[1:]
    return torch.stack(rows), torch.diag(p) - torch.outer(p, p)


def ggn(engine: Engine, trees: list[TokenTree]) -> Tensor:
    """Return the whole generalised Gauss-Newton matrix, [P, P]."""
    found = 0.0
    for tree in trees:
        J, Lambda = dense(engine, tree)
        found = found + J.T @ Lambda @ J
    assert isinstance(found, Tensor)
    return found


def blocks(engine: Engine) -> list[tuple[str, slice]]:
    """Return where each weight matrix stands among the parameters."""
    assert engine.stack is not None
    names = [f"{name}.{side}" for name in engine.stack.layers for side in "AB"]
    ends = np.cumsum([0, *(p.numel() for p in engine.stack.parameters(0))])
    return [(name, slice(a, b)) for name, a, b in zip(names, ends[:-1], ends[1:], strict=True)]


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


def answers(engine: Engine, trees: list[TokenTree]) -> Predictions:
    K = max(len(tree.branches) for tree in trees)
    log_probs = np.full((1, len(trees), K), -np.inf)
    for batch in gradients(engine, 0, trees, "sum"):
        log_probs[0, batch.index, : batch.log_probs.shape[1]] = batch.log_probs.numpy()
    mask = np.isfinite(log_probs[0])
    ids = tuple(f"q{n}" for n in range(len(trees)))
    return Predictions(log_probs, mask, ids, np.zeros(len(trees), dtype=np.int64), (0,))


def test_gradients_are_those_of_autograd_question_by_question(engine: Engine, trees: list[TokenTree]) -> None:
    assert len({len(tree.branches) for tree in trees}) > 2  # absent choices among them
    seen = []
    for batch in gradients(engine, 0, trees, "sum"):
        seen += batch.index
        for place, n in enumerate(batch.index):
            J, _ = dense(engine, trees[n])
            ours = torch.cat([of.jacobian()[place].flatten(1) for pair in batch.weights.values() for of in pair], dim=1)
            assert distance(ours[: len(J)], J) < CLOSE
            assert not ours[len(J) :].any()  # of choices that it does not have
    assert sorted(seen) == list(range(len(trees)))


@pytest.mark.parametrize("way", ["one question a pass", "each choice a row, as for recurrent models"])
def test_however_they_are_passed_they_are_the_same(
    way: str, engine: Engine, trees: list[TokenTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Diagonal.fit(gradients(engine, 0, trees, "sum"), 1)
    if way == "one question a pass":
        monkeypatch.setattr(engine, "batch_tokens", 1)
    else:
        monkeypatch.setattr(engine.padded, "whole_sequences", True)
    otherwise = Diagonal.fit(gradients(engine, 0, trees, "sum"), 1)
    for key, values in together.of_weights.items():
        assert distance(otherwise.of_weights[key], values.double()) < CLOSE


def test_the_diagonal_is_that_of_the_whole_matrix(engine: Engine, trees: list[TokenTree]) -> None:
    ours = Diagonal.fit(gradients(engine, 0, trees, "sum"), 1)
    truth = ggn(engine, trees).diagonal()
    assert distance(torch.cat([ours.of_weights[name].flatten() for name, _ in blocks(engine)]), truth) < CLOSE


def test_of_one_token_the_factors_are_each_block_exactly(engine: Engine) -> None:
    truth = ggn(engine, ONE_TOKEN)
    kronecker = Kronecker.fit(gradients(engine, 0, ONE_TOKEN, "sum"), 10)
    assert kronecker.tokens == 1
    found = 0
    for name, block in blocks(engine):
        g, x = kronecker.of_weights[name]
        outer, inner = ((f.vectors.T * f.values) @ f.vectors for f in (g, x))
        exact = truth[block, block]
        if exact.norm() > 1e-9:  # queries of a single token move nothing
            assert distance(torch.kron(outer, inner), exact) < CLOSE
            found += 1
    assert found >= 4


def test_of_many_tokens_the_factors_are_sums_over_all_of_them(engine: Engine, trees: list[TokenTree]) -> None:
    kronecker = Kronecker.fit(gradients(engine, 0, trees, "sum"), 10)
    batches = list(gradients(engine, 0, trees, "sum"))
    assert kronecker.tokens == sum(tree.read for tree in trees)
    for key, (g, x) in kronecker.of_weights.items():
        name, side = key.rsplit(".", 1)
        outer, inner = (torch.zeros(f.vectors.shape[1], f.vectors.shape[1], dtype=torch.float64) for f in (g, x))
        for batch in batches:
            of = batch.weights[name]["AB".index(side)]
            p = batch.log_probs.double().exp()[:, 1:]
            for n in range(len(batch.index)):
                Lambda = torch.diag(p[n]) - torch.outer(p[n], p[n])
                for t in range(of.inputs.shape[1]):
                    slope, value = of.gradients[:, n, t].double(), of.inputs[n, t].double()
                    outer += slope.T @ Lambda @ slope
                    inner += torch.outer(value, value)
        for factor, truth in ((g, outer), (x, inner)):
            assert distance((factor.vectors.T * factor.values) @ factor.vectors, truth) < CLOSE


def test_repeated_they_sum(engine: Engine) -> None:
    once, thrice = (Kronecker.fit(gradients(engine, 0, ONE_TOKEN * n, "sum"), 10) for n in (1, 3))
    assert distance(thrice.eigenvalues(), 3 * once.eigenvalues()) < CLOSE


@pytest.mark.parametrize("kind", [Kronecker, Diagonal])
def test_covariances_and_samples_are_those_of_the_dense_inverse(
    kind: type[Kronecker | Diagonal], engine: Engine, trees: list[TokenTree]
) -> None:
    """P = tau I + F as dense blocks: C = J P^-1 J^T, and samples of covariance P^-1."""
    posterior, tau = kind.fit(gradients(engine, 0, trees, "sum"), 10), 0.5
    count = sum(p.numel() for p in engine.stack.parameters(0)) if engine.stack else 0
    precision = tau * torch.eye(count, dtype=torch.float64)
    for name, block in blocks(engine):
        if isinstance(posterior, Diagonal):
            precision[block, block] += posterior.of_weights[name].flatten().double().diag()
        else:
            g, x = ((f.vectors.T * f.values) @ f.vectors for f in posterior.of_weights[name])
            precision[block, block] += torch.kron(g, x).double() / posterior.tokens
    p = answers(engine, trees)
    [C] = covariances(gradients(engine, 0, trees, "sum"), posterior, [tau], p)
    for n, tree in enumerate(trees):
        J, _ = dense(engine, tree)
        exact = J @ torch.linalg.solve(precision, J.T)
        assert distance(torch.tensor(C[n, : len(J), : len(J)]), exact) < CLOSE
        assert not C[n, len(J) :].any()
    name, block = blocks(engine)[1]
    shape = engine.stack.parameters(0)[1].shape if engine.stack else ()
    units = torch.eye(block.stop - block.start).view(-1, *shape)
    root = torch.stack([posterior.sample(name, unit, tau).flatten() for unit in units], dim=1).double()
    assert distance(root @ root.T, torch.linalg.inv(precision[block, block])) < CLOSE


def test_the_prior_is_the_one_of_the_highest_marginal_likelihood() -> None:
    eigenvalues, squares = torch.tensor([5.0, 1.0, 0.01, 0.0], dtype=torch.float64), 2.0

    def evidence(tau: float) -> float:
        return -tau * squares / 2 - float(torch.log1p(eigenvalues / tau).sum()) / 2

    tau = best_precision(eigenvalues, squares)
    assert all(evidence(tau) >= evidence(tau * factor) for factor in (0.5, 0.99, 1.01, 2.0))
    with pytest.raises(UserError, match="train it longer"):
        best_precision(torch.zeros(3), 1.0)


def test_the_largest_directions_are_those_of_the_decomposition() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 8, generator=draw) @ torch.randn(8, 150, generator=draw)  # of 8 directions
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    ours, directions = largest(rows, 5)
    assert distance(ours, values[:5].double()) < CLOSE
    assert distance((directions * vectors[:5]).sum(dim=1).abs(), torch.ones(5, dtype=torch.float64)) < CLOSE
    # Added in parts: exact where all directions are kept.
    total = _Sum(150, 8)
    for part in rows.split(50):
        total.add(part)
    kept = total.factor()
    assert distance((kept.vectors.T * kept.values) @ kept.vectors, (rows.T @ rows).double()) < CLOSE


def test_drawn_scores_have_their_covariance_and_without_any_nothing_moves(
    engine: Engine, trees: list[TokenTree]
) -> None:
    p = answers(engine, trees)
    C = np.zeros((len(trees), p.mask.shape[1] - 1, p.mask.shape[1] - 1))
    still = draw_scores(p, C, 2, seed=0)
    # The answers were normalised in float32, draws are in float64.
    np.testing.assert_allclose(still.log_probs, np.repeat(p.log_probs, 2, axis=0), atol=1e-6)
    C[:, 0, 0] = 0.25
    moved = draw_scores(p, C, 4000, seed=0)
    contrast = moved.log_probs[:, :, 1] - moved.log_probs[:, :, 0] - (p.log_probs[0, :, 1] - p.log_probs[0, :, 0])
    # A variance of 4,000 normal numbers is within 5 standard errors of 2/sqrt(2 * 4,000) of itself.
    assert np.abs(contrast.var(axis=0) / 0.25 - 1).max() < 5 * math.sqrt(2 / 4000)
    # Whatever is asked beside it: alone, a question of fewer choices makes a narrower table.
    n = int(p.mask.sum(axis=1).argmin())
    K = int(p.mask[n].sum())
    question = p.select(np.array([n]))
    question = replace(question, log_probs=question.log_probs[..., :K], mask=question.mask[:, :K])
    alone = draw_scores(question, C[n : n + 1, : K - 1, : K - 1], 4000, seed=0)
    np.testing.assert_allclose(alone.log_probs[:, 0], moved.log_probs[:, n, :K], rtol=1e-12)


def test_it_is_of_a_likelihood_of_choices(tmp_path: Path) -> None:
    why = Laplace().refusal(config(loss="next_token"), 1, 3)
    assert why is not None
    assert "train another run with choices" in why
