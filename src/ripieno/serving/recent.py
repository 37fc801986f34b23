"""Whether the questions of late are like those that a promise was certified on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ripieno.ensemble import Ensemble
from ripieno.measures.shift import Shift
from ripieno.model.features import Prompts, read_prompts
from ripieno.model.trees import TokenTree

WINDOW = 100  # questions that are compared with the certified ones at a time
EVERY = 8  # of so many questions of a batch one is looked at: what it costs is a small part of what answers cost


class Recent:
    """Samples the questions that are asked, and compares each full window of them with the certified ones.

    Windows do not overlap, so each gives a false alarm as rarely as `measures.shift.FALSE_ALARMS` says.

    Args:
        ensemble: with what was certified.

    Attributes:
        shift: what the last full window said; None before the first one, and where the base gives no features.
    """

    def __init__(self, ensemble: Ensemble):
        self._ensemble = ensemble
        self._window: list[Prompts] = []
        self.shift: Shift | None = None

    def read(self, trees: Sequence[TokenTree]) -> None:
        """Look at some of a batch's questions."""
        certified = self._ensemble.certified
        if certified is None or not certified.features or not trees:
            return
        self._window.append(read_prompts(self._ensemble.engine, trees[::EVERY]))
        lengths = np.concatenate([prompts.tokens for prompts in self._window])
        if len(lengths) >= WINDOW:
            self.shift = certified.compare(np.concatenate([prompts.hidden for prompts in self._window]), lengths)
            self._window.clear()
