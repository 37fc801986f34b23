"""Training-free Bayesianisation: one variance for a trained adapter, as large as validation lets it be.

TFB, arXiv:2412.05723. With B = U diag(d) V^T, the posterior is N((V^T A)_ij, (sigma / d_i)^2): wide where the update is
short. In the update B A this is noise sigma * U E with E of standard normal numbers, whatever the d, which is how a
draw is made here: B' = U, A' = diag(d) V^T A + sigma E, an adapter of the same rank. sigma is the largest under which
the mean NLL on validation questions rises by no more than a share of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ripieno.config import Config, PositiveInt
from ripieno.methods import Fitted, Method
from ripieno.methods.trained import Trained, pooled_nll
from ripieno.predictions import of_draws
from ripieno.seeds import derive
from ripieno.training.variational import noise

LARGEST, SMALLEST = 1.0, 1e-4  # sigma searched between them
RANK_TOLERANCE = 1e-6  # of the largest singular value: what float32 makes of a 0


class Tfb(Method):
    """The first member, with noise along its update's own directions."""

    tolerance: Annotated[float, Field(gt=0)] = 0.003
    """By which share the mean NLL of the validation questions may rise."""
    search_draws: PositiveInt = 2
    """Samples that are pooled for each sigma tried; the same noise for all of them."""
    search_steps: PositiveInt = 6
    """Halvings of the interval of ln sigma."""

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """The search takes validation questions."""
        return None if config.data.validation else "it has no data.validation to search by; name a set and train again"

    def fit(self, trained: Trained) -> Fitted:
        """Search sigma by bisection of its logarithm; 0 where even the smallest is too large."""
        trained.load(trained.member)
        allowed = pooled_nll(trained.ask(trained.validation)) * (1 + self.tolerance)
        low, high = math.log(SMALLEST), math.log(LARGEST)
        if self._loss(trained, SMALLEST) > allowed:
            return {"sigma": torch.tensor(0.0)}
        for _ in range(self.search_steps):
            middle = (low + high) / 2
            low, high = (middle, high) if self._loss(trained, math.exp(middle)) <= allowed else (low, middle)
        return {"sigma": torch.tensor(math.exp(low))}

    def said(self, fitted: Fitted) -> str:
        """The variance's root."""
        return f"sigma {float(fitted['sigma']):.2g}"

    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[None]:
        """Put the samples in place."""
        yield from self._draws(trained, float(fitted["sigma"]), "draw", count)

    def _loss(self, trained: Trained, sigma: float) -> float:
        drawn = self._draws(trained, sigma, "search", self.search_draws)
        return pooled_nll(of_draws([trained.ask(trained.validation) for _ in drawn]))

    def _draws(self, trained: Trained, sigma: float, purpose: str, count: int) -> Iterator[None]:
        trained.load(trained.member)
        rotated = {name: rotate(*pair) for name, pair in trained.weights().items()}
        for draw in range(count):
            seed = derive(trained.config.training.seed, f"tfb {purpose}", trained.member, draw)
            drawn = noise(trained.ensemble.stack, seed)
            trained.put({name: (A + sigma * drawn[name], U) for name, (A, U) in rotated.items()})
            yield None


def rotate(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return (diag(d) V^T A, U) of A (down) and B = U diag(d) V^T (up): the same update B A, its left side orthonormal.

    Columns of 0 stand for directions that B does not have: of a lower rank, of a layer that is not the member's, or of
    a rank above the width of the output. What it does not have is given no noise.
    """
    U, d, Vh = torch.linalg.svd(up, full_matrices=False)
    U = U * (d > RANK_TOLERANCE * d.max())
    missing = len(down) - len(d)
    return torch.nn.functional.pad(d[:, None] * Vh @ down, (0, 0, 0, missing)), torch.nn.functional.pad(U, (0, missing))
