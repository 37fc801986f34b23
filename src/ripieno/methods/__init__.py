"""Ways to get several answers out of one trained member, each a file, all with the same verb.

    sample(run, stack, member, epoch) -> dropout seeds, or None

It fills every position of a stack with one draw of a member's weights, as it was after an epoch; how many draws there
are is how many positions the stack has. Where a draw is one of dropout masks and not of weights, their seeds come back.
An ensemble of such a stack then answers as any other: `[draw, question, choice]`.

A method is found by its file's name; adding one is adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Protocol

from ripieno.errors import UserError
from ripieno.model.adapters import AdapterStack
from ripieno.runs import RunFolder


class Method(Protocol):
    """What the file of a method offers."""

    def sample(self, run: RunFolder, stack: AdapterStack, member: int, epoch: int) -> Sequence[int] | None:
        """Fill every position of a stack with a draw; return the seeds of their dropout masks, None for none.

        Raises:
            UserError: the run was not trained in a way that this method can draw from.
            EnvironmentFault: an adapter is missing or damaged.
        """


def names() -> list[str]:
    """Return the methods that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def named(name: str) -> Method:
    """Return a method by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        raise UserError(f"--method {name}: there are {', '.join(names())}")
    method: Method = importlib.import_module(f"{__name__}.{name}")
    return method
