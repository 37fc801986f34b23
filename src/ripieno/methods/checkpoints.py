"""The last epochs of one member: an ensemble that costs nothing to train (Huang et al. 2017, arXiv:1704.00109).

Its draws lie along one path through the weights, so they differ less than members that were trained apart.
"""

from __future__ import annotations

from ripieno.errors import UserError
from ripieno.model.adapters import AdapterStack
from ripieno.runs import RunFolder, require_adapter


def sample(run: RunFolder, stack: AdapterStack, member: int, epoch: int) -> None:
    """Fill a stack with a member's adapters of the epochs up to one, the last first.

    Raises:
        UserError: the member has fewer epochs than draws are asked for.
        EnvironmentFault: an adapter is missing or damaged.
    """
    draws = len(stack.members)
    if draws > epoch:
        raise UserError(f"{run.path}: checkpoints: {draws} draws take as many epochs, and member {member} has {epoch}")
    for draw in range(draws):
        require_adapter(run, member, epoch - draw)
        stack.load_peft(draw, run.adapter(member, epoch - draw))
