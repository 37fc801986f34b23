"""The member with the lowest NLL on the validation questions: what an ensemble's training buys without averaging."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch

from ripieno.config import Config
from ripieno.methods import Fitted, Method
from ripieno.methods.trained import Trained, pooled_nll


class Best(Method):
    """One of the members, chosen by validation."""

    of_members: ClassVar[bool] = True

    def stands_on(self, members: Sequence[int]) -> Sequence[int]:
        """All of them."""
        return members

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """The choice takes validation questions."""
        return None if config.data.validation else "it has no data.validation to choose by; name a set and train again"

    def fit(self, trained: Trained) -> Fitted:
        """Choose the member; the first of equals."""
        losses = []
        for member in trained.members:
            trained.load(member)
            losses.append(pooled_nll(trained.ask(trained.validation)))
        return {"member": torch.tensor(trained.members[losses.index(min(losses))])}

    def said(self, fitted: Fitted) -> str:
        """Which member."""
        return f"member {int(fitted['member'])}"

    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[None]:
        """Load it, once."""
        trained.load(int(fitted["member"]))
        yield None
