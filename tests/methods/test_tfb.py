"""Training-free Bayesianisation: noise of one size on the update, as large as validation allows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import QUESTIONS, config, distance, train, updates

from ripieno import measures
from ripieno.ensemble import Ensemble
from ripieno.methods.tfb import Tfb, rotate
from ripieno.methods.trained import Trained
from ripieno.predictions import of_draws
from ripieno.progress import Progress


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """One member after two epochs, validated on the questions it trained on."""
    settings = config(epochs=2)
    made = train(tmp_path / "run", settings, [0])
    ensemble = Ensemble(
        made.engine, made.stack, made.examples.encoder, settings.prompt, settings.evaluation, 1, range(1)
    )
    encoded = {"validation": ensemble.encode(QUESTIONS)}
    return Trained(made.run, settings, ensemble, [0], 2, Progress(quiet=True), encoded=encoded)


@pytest.mark.parametrize(("rank", "out"), [(3, 7), (5, 4)])
def test_rotated_it_is_the_same_update_with_an_orthonormal_left_side(rank: int, out: int) -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(rank, 9, generator=generator), torch.randn(out, rank, generator=generator)
    A, U = rotate(down, up)
    assert (A.shape, U.shape) == (down.shape, up.shape)
    assert distance(U @ A, up @ down) < 1e-6
    kept = min(rank, out)
    torch.testing.assert_close((U.T @ U)[:kept, :kept], torch.eye(kept), atol=1e-6, rtol=0)
    # What it does not have is given no noise: a member of a lower rank, a layer that is not its own.
    up[:, 1:] = 0
    assert rotate(down, up)[1].any(dim=0).sum() == 1
    assert not rotate(down, torch.zeros_like(up))[1].any()


def test_draws_move_the_update_by_sigma_along_its_own_directions(trained: Trained) -> None:
    stack = trained.ensemble.stack
    trained.load(0)
    own, pairs = updates(stack, 0), trained.weights()
    method, sigma = Tfb(), 0.03
    moved = [updates(stack, 0) - own for _ in method.draws(trained, {"sigma": torch.tensor(sigma)}, 200)]
    # The mean square of sigma U E: rank of out directions carry sigma^2 each.
    expected = sum(sigma**2 * A.numel() for A, _ in pairs.values())
    squares = [float((step**2).sum()) for step in moved]
    # A sum of n squares of normal numbers has a relative spread of sqrt(2/n); 5 of them over the mean of 200.
    n = sum(A.numel() for A, _ in pairs.values())
    assert abs(np.mean(squares) / expected - 1) < 5 * np.sqrt(2 / n / 200)
    assert [0.0 for _ in method.draws(trained, {"sigma": torch.tensor(0.0)}, 1)]
    assert distance(updates(stack, 0), own) < 1e-6


def test_the_search_ends_at_the_largest_that_validation_allows(trained: Trained) -> None:
    method = Tfb(tolerance=0.02, search_steps=5)
    sigma = float(method.fit(trained)["sigma"])

    def loss(at: float) -> float:
        p = of_draws([trained.ask(trained.validation) for _ in method._draws(trained, at, "search", 2)])
        return float(measures.nll(measures.pool_log(p.log_probs), p.targets).mean())

    trained.load(0)
    own = trained.ask(trained.validation)
    allowed = float(measures.nll(own.log_probs, own.targets).mean()) * 1.02
    step = (1e4) ** (1 / 2**5)  # what is left of the interval of 1e-4 to 1
    assert loss(sigma) <= allowed < loss(sigma * step)


def test_a_search_without_questions_is_refused() -> None:
    given: Any = SimpleNamespace(data=SimpleNamespace(validation=()))
    why = Tfb().refusal(given, 1, 3)
    assert why is not None
    assert "data.validation" in why
