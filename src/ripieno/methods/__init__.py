"""Ways to get several answers out of one trained member, each a file, all with the same verbs.

    refusal(config, epoch, count)            why a run cannot give so many draws, and what would; None where it can
    draws(run, stack, member, epoch, count)  each draw in turn

`draws` puts one draw after the other into a stack's only position, as the member was after an epoch. Where a draw is
one of dropout masks and not of weights, it yields their seed, else None. Asked with each in turn, they are the rows of
one `Predictions`: `[draw, question, choice]`.

A method is found by its file's name; adding one is adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Protocol

from ripieno.config import Config
from ripieno.errors import UserError
from ripieno.model.adapters import AdapterStack
from ripieno.runs import RunFolder


class Method(Protocol):
    """What the file of a method offers."""

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """Return why a run of this config cannot give so many draws after an epoch, and what would; None if it can."""

    def draws(self, run: RunFolder, stack: AdapterStack, member: int, epoch: int, count: int) -> Iterator[int | None]:
        """Put each of `count` draws into the stack's position 0, and yield the seed of its dropout masks, if any.

        Raises:
            UserError: the member is not trained so far.
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
