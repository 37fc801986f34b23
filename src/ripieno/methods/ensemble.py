"""Every member: deep ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474) of LoRA adapters (arXiv:2402.12264)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from ripieno.methods import Fitted, Method
from ripieno.methods.trained import Trained


class Ensemble(Method):
    """All members, a row each."""

    of_members: ClassVar[bool] = True

    def stands_on(self, members: Sequence[int]) -> Sequence[int]:
        """All of them."""
        return members

    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[None]:
        """Load the members in turn: as many as there are."""
        for member in trained.members:
            trained.load(member)
            yield None
