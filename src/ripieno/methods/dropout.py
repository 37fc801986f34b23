"""Monte Carlo dropout of the adapter: what training dropped is dropped when asking too (Gal and Ghahramani 2016).

arXiv:1506.02142. A draw is a set of masks: one for each token of each targeted layer, which follow from the run's seed,
the draw and the question alone. So the same draw is one function of the question, asked in any batch and any order.
"""

from __future__ import annotations

from ripieno.errors import UserError
from ripieno.model.adapters import AdapterStack
from ripieno.runs import RunFolder
from ripieno.seeds import derive


def sample(run: RunFolder, stack: AdapterStack, member: int, epoch: int) -> list[int]:
    """Fill a stack with a member's adapter, in every position, and return the seeds of the masks.

    Raises:
        UserError: the run was trained without dropout.
        EnvironmentFault: the adapter is missing or damaged.
    """
    config = run.config()
    if not config.adapter.dropout:
        raise UserError(f"{run.path}: dropout: was trained with adapter.dropout 0, so there are no masks to draw")
    for draw in range(len(stack.members)):
        stack.load_peft(draw, run.adapter(member, epoch))
    return [derive(config.training.seed, "dropout draw", member, draw) for draw in range(len(stack.members))]
