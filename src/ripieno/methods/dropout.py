"""Monte Carlo dropout of the adapter: what training dropped is dropped when asking too (Gal and Ghahramani 2016).

arXiv:1506.02142. A draw is a set of masks: one for each token of each targeted layer, which follow from the run's seed,
the draw and the question alone. So the same draw is one function of the question, asked in any batch and any order.
"""

from __future__ import annotations

from collections.abc import Iterator

from ripieno.config import Config
from ripieno.methods import Fitted, Method
from ripieno.methods.trained import Trained
from ripieno.seeds import derive


class Dropout(Method):
    """The first member, under several sets of masks."""

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """There are masks to draw where training drew some."""
        if config.adapter.dropout:
            return None
        return "it was trained without dropout; set adapter.dropout, such as 0.1, and train another run"

    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[int]:
        """Load the member, and yield the seed of each draw's masks."""
        trained.load(trained.member)
        for draw in range(count):
            yield derive(trained.config.training.seed, "dropout draw", trained.member, draw)
