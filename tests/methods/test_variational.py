"""A distribution of A: its gradients are autograd's, without spread it is one value, a kill changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import config, distance, losses, train, trainer, updates
from torch.distributions import Normal, kl_divergence

from ripieno.config import Variational
from ripieno.training.loop import Trainer
from ripieno.training.variational import STD_FILE, Posterior, noise, read_std

SPREAD = {"initial_std": 0.05, "divergence_rate": 0.001}


def test_without_spread_it_trains_what_one_value_trains(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", config(epochs=2))
    still = train(tmp_path / "still", config(epochs=2, variational={"initial_std": 0.0, "divergence_rate": 0.0}))
    for p in range(3):
        assert distance(updates(still.stack, p), updates(plain.stack, p)) < 1e-6
    assert losses(still, 0) == pytest.approx(losses(plain, 0), rel=1e-6)
    spread = train(tmp_path / "spread", config(epochs=2, variational=SPREAD))
    assert distance(updates(spread.stack, 0), updates(plain.stack, 0)) > 1e-3


def test_the_gradient_of_the_spread_is_autograds(tmp_path: Path) -> None:
    made = trainer(tmp_path, config(), [0])
    made.stack.initialise(0, 1)
    with torch.no_grad():
        for layer in made.stack.layers.values():
            layer.B[0].fill_(0.1)
    posterior, trees = Posterior(made.stack, Variational(initial_std=0.05)), made.examples.epoch(0, 1)[:4]
    made.steps = {0: 0}
    drawn = noise(made.stack, 7)
    posterior.draw(0, 7)
    made._loss([0], [trees]).sum().backward()
    posterior.gradients(0)
    ours = [root.grad.clone() for root in posterior.parameters(0) if root.grad is not None]
    for name, layer in made.stack.layers.items():
        posterior.roots[0][name].grad = None
        layer.shift[0] = posterior.roots[0][name] ** 2 * drawn[name]  # inside the graph this time
    made._loss([0], [trees]).sum().backward()
    theirs = [root.grad for root in posterior.parameters(0)]
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_a_step_of_the_divergence_is_its_gradient(tmp_path: Path) -> None:
    """Down autograd's gradient of torch's own divergence between normal distributions."""
    made = trainer(tmp_path, config(), [0])
    made.stack.initialise(0, 1)
    posterior = Posterior(made.stack, Variational(prior_std=0.3, initial_std=0.05))
    moved = [p for layer in made.stack.layers.values() for p in (layer.A[0],)] + posterior.parameters(0)
    before = [p.detach().clone() for p in moved]
    prior, terms = Normal(0.0, 0.3), []
    for name, layer in made.stack.layers.items():
        terms.append(kl_divergence(Normal(layer.A[0], posterior.roots[0][name] ** 2), prior).sum())
    gradient = torch.autograd.grad(torch.stack(terms).sum(), moved)
    posterior.diverge_less(0, 0.01)
    for start, now, slope in zip(before, moved, gradient, strict=True):
        torch.testing.assert_close(now.detach(), start - 0.01 * slope, rtol=1e-5, atol=1e-7)


def test_it_goes_on_where_it_stopped_and_keeps_its_spread(tmp_path: Path) -> None:
    settings = config(epochs=2, variational=SPREAD)
    whole = train(tmp_path / "whole", settings)

    def killed(trainer: Trainer, epoch: int, *rest: Any) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        epoch_of(trainer, epoch, *rest)

    epoch_of = Trainer._epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", settings)
    again = train(tmp_path / "killed", settings)
    for member in range(3):
        folders = [made.run.adapter(member, 2) for made in (whole, again)]
        for file in (STD_FILE, "adapter_model.safetensors"):
            assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
        moved = [float((std - SPREAD["initial_std"]).abs().max()) for std in read_std(folders[0]).values()]
        assert min(moved) > 1e-4
