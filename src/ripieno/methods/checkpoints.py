"""The last epochs of one member: an ensemble that costs nothing to train (Huang et al. 2017, arXiv:1704.00109).

Its draws lie along one path through the weights, so they differ less than members that were trained apart.
"""

from __future__ import annotations

from collections.abc import Iterator

from ripieno.config import Config
from ripieno.model.adapters import AdapterStack
from ripieno.runs import RunFolder, require_adapter


def refusal(config: Config, epoch: int, count: int) -> str | None:
    """A draw is an epoch."""
    return f"{count} draws take as many epochs; give --draws {epoch} at most" if count > epoch else None


def draws(run: RunFolder, stack: AdapterStack, member: int, epoch: int, count: int) -> Iterator[None]:
    """Load the member's adapters of the epochs up to one, the last first."""
    for at in range(epoch, epoch - count, -1):
        require_adapter(run, member, at)
        stack.load_peft(0, run.adapter(member, at))
        yield None
