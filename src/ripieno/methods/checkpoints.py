"""The last epochs of one member, or of all: an ensemble that costs nothing to train (arXiv:1704.00109).

Its draws lie along one path through the weights, so they differ less than members that were trained apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ripieno.config import Config
from ripieno.errors import UserError
from ripieno.methods import Fitted, Method
from ripieno.methods.trained import Trained


class Checkpoints(Method):
    """The epochs up to one, the last first."""

    all_members: bool = False
    """Of every member, and not of the first alone."""

    def stands_on(self, members: Sequence[int]) -> Sequence[int]:
        """All of them, or the first."""
        return members if self.all_members else members[:1]

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """A draw is an epoch."""
        return f"{count} draws take as many epochs, and there are {epoch}; ask fewer draws" if count > epoch else None

    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[None]:
        """Load the adapters of `count` epochs, member by member, from the one that it answers with."""
        for member in self.stands_on(trained.members):
            last = trained.epoch_of(member)
            if last < count:
                raise UserError(
                    f"{trained.run.path}: member {member} answers with epoch {last}, which is less than {count} "
                    "checkpoints; ask fewer draws"
                )
            for epoch in range(last, last - count, -1):
                trained.load(member, epoch)
                yield None
