"""Samples of a distribution of A that was trained in place of one value (BLoB, arXiv:2406.11675).

`training.variational` trains it (training/variational.py); a draw is A = mean + std * noise, B as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from ripieno.config import Config
from ripieno.methods import Fitted, Method
from ripieno.methods.trained import Trained
from ripieno.seeds import derive
from ripieno.training.variational import STD_FILE, noise, read_std


class Variational(Method):
    """The first member's distribution."""

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """There is a distribution where training made one."""
        if config.training.variational:
            return None
        return "it was trained to one value of its weights; set training.variational, such as {}, and train another run"

    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[None]:
        """Put the samples in place."""
        trained.load(trained.member)
        means, std = trained.weights(), read_std(trained.adapter(trained.member))
        trained.used.add(trained.adapter(trained.member) / STD_FILE)
        for draw in range(count):
            seed = derive(trained.config.training.seed, "variational draw", trained.member, draw)
            drawn = noise(trained.ensemble.stack, seed)
            trained.put({name: (A + std[name].to(A.device) * drawn[name], B) for name, (A, B) in means.items()})
            yield None
